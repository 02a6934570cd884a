/** The part of JupyterLab's translation bundle that is used: "%1" stands for the first value. */
export interface Trans {
  __(words: string, ...values: (string | number)[]): string;
  _n(one: string, many: string, count: number, ...values: (string | number)[]): string;
}

/** The same, with words that need no values looked up once: a list of 64 ranks asks for hundreds. */
export function remembering(trans: Trans): Trans {
  const known = new Map<string, string>();
  return {
    __: (words, ...values) => {
      if (values.length) {
        return trans.__(words, ...values);
      }
      let found = known.get(words);
      if (found === undefined) {
        found = trans.__(words);
        known.set(words, found);
      }
      return found;
    },
    _n: (one, many, count, ...values) => trans._n(one, many, count, ...values)
  };
}

const fill = (words: string, values: (string | number)[]): string =>
  words.replace(/%(\d)/g, (_, index: string) => String(values[Number(index) - 1] ?? ''));

/** English, for where no translator is. */
export const english: Trans = {
  __: (words, ...values) => fill(words, values),
  _n: (one, many, count, ...values) => fill(count === 1 ? one : many, [count, ...values])
};
