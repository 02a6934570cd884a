// What was typed into the dialog of a new cluster, as the server wants it.

import type { Trans } from './trans.js';
import type { Hosts } from './types.js';

export type Where = 'here' | 'file' | 'list';

export interface Wish {
  where: Where;
  count: string;
  path: string;
  list: string;
  name: string;
  /** "" lets the server choose. */
  backend: string;
  checked: boolean;
}

/** The hosts, or null and what is still missing; a name that is taken is a problem too. */
export function parseWish(
  wish: Wish,
  taken: string[],
  trans: Trans
): { hosts: Hosts | null; problem: string } {
  const name = wish.name.trim();
  let problem = '';
  if (!name) {
    problem = trans.__('Give the cluster a name.');
  } else if (taken.includes(name)) {
    problem = trans.__('There is a cluster named %1 already. Choose another name.', name);
  }
  switch (wish.where) {
    case 'here': {
      const count = Number(wish.count);
      return Number.isInteger(count) && count >= 1
        ? { hosts: count, problem }
        : { hosts: null, problem: trans.__('The number of ranks is a whole number from 1.') };
    }
    case 'file': {
      const path = wish.path.trim();
      return path
        ? { hosts: path, problem }
        : { hosts: null, problem: trans.__('Give the path of a hostfile.') };
    }
    case 'list': {
      const hosts = wish.list.split(/[\s,;]+/).filter(Boolean);
      return hosts.length
        ? { hosts, problem }
        : { hosts: null, problem: trans.__('Give the name of at least one host.') };
    }
  }
}
