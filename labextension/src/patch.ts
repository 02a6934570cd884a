// RFC 7396 merge patches, with what has not changed kept as it is: views compare by identity.

type Table = Record<string, unknown>;

const isTable = (value: unknown): value is Table =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The same value: by content, for the small lists and tables that patches carry. */
export function same(one: unknown, two: unknown): boolean {
  if (Object.is(one, two)) {
    return true;
  }
  if (Array.isArray(one) && Array.isArray(two)) {
    return one.length === two.length && one.every((value, index) => same(value, two[index]));
  }
  if (isTable(one) && isTable(two)) {
    const names = Object.keys(one);
    return (
      names.length === Object.keys(two).length &&
      names.every(name => Object.hasOwn(two, name) && same(one[name], two[name]))
    );
  }
  return false;
}

/** The target with the patch merged in; the target itself when nothing changes. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isTable(patch)) {
    return same(target, patch) ? target : patch;
  }
  const before: Table = isTable(target) ? target : {};
  let after = before;
  let changed = !isTable(target);
  const write = (): Table => {
    if (after === before) {
      after = { ...before };
    }
    changed = true;
    return after;
  };
  for (const name of Object.keys(patch)) {
    const value = patch[name];
    if (value === null) {
      if (Object.hasOwn(before, name)) {
        delete write()[name];
      }
      continue;
    }
    const old = Object.hasOwn(before, name) ? before[name] : undefined;
    const merged = mergePatch(old, value);
    if (merged !== old) {
      put(write(), name, merged);
    }
  }
  return changed ? after : target;
}

// A variable may be called "__proto__": a plain assignment would be lost.
function put(table: Table, name: string, value: unknown): void {
  Object.defineProperty(table, name, {
    value,
    configurable: true,
    enumerable: true,
    writable: true
  });
}
