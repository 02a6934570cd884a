// What a person does to a cluster: what runs, and how it ended.

import { asFault, type Action, type Api } from './api.js';
import type { Cluster, Fault } from './types.js';

export type Doing = Action | 'stacks' | 'logs' | 'insert';

export interface Notice {
  cluster: string;
  action: Doing;
  /** An error, or else how it went. */
  fault: Fault | null;
  words: string;
}

export interface ActionState {
  /** "NAME action" of all that runs. */
  running: ReadonlySet<string>;
  /** The newest notice of each cluster. */
  notices: ReadonlyMap<string, Notice>;
}

export class Actions {
  private _state: ActionState = { running: new Set(), notices: new Map() };
  private readonly _listeners = new Set<() => void>();

  /** `unseen` is told what ended while the sidebar cannot be seen. */
  constructor(
    private readonly api: Pick<Api, 'act'>,
    private readonly unseen: (notice: Notice) => void = () => undefined
  ) {}

  get state(): ActionState {
    return this._state;
  }

  subscribe(listener: () => void): () => void {
    this._listeners.add(listener);
    return () => {
      this._listeners.delete(listener);
    };
  }

  runs(cluster: string, action: Doing): boolean {
    return this._state.running.has(key(cluster, action));
  }

  act(cluster: string, action: Action): Promise<boolean> {
    return this.run(cluster, action, () => this.api.act(cluster, action));
  }

  /** Do something that takes a while; its end is a notice. Not twice at a time. */
  async run(cluster: string, action: Doing, work: () => Promise<string>): Promise<boolean> {
    const mine = key(cluster, action);
    if (this._state.running.has(mine)) {
      return false;
    }
    this._set({ running: new Set([...this._state.running, mine]) });
    this.dismiss(cluster);
    let notice: Notice;
    try {
      notice = { cluster, action, fault: null, words: await work() };
    } catch (error) {
      notice = { cluster, action, fault: asFault(error), words: '' };
    }
    const running = new Set(this._state.running);
    running.delete(mine);
    this._set({ running });
    if (notice.fault || notice.words) {
      this._set({ notices: new Map([...this._state.notices, [cluster, notice]]) });
      this.unseen(notice);
    }
    return notice.fault === null;
  }

  dismiss(cluster: string): void {
    if (this._state.notices.has(cluster)) {
      const notices = new Map(this._state.notices);
      notices.delete(cluster);
      this._set({ notices });
    }
  }

  private _set(changes: Partial<ActionState>): void {
    this._state = { ...this._state, ...changes };
    for (const listener of [...this._listeners]) {
      listener();
    }
  }
}

const key = (cluster: string, action: Doing): string => `${action} ${cluster}`;

/** A start that failed: no process of it is left, so there is nothing to stop. */
export const failedStart = (cluster: Cluster): boolean =>
  cluster.state === 'broken' &&
  Object.values(cluster.ranks ?? {}).every(rank => rank.pid == null || rank.state === 'dead') &&
  cluster.failure != null;

/** Whether it makes sense now; the server decides. */
export function allowed(cluster: Cluster, action: Doing): boolean {
  const { state } = cluster;
  const formed = state !== 'starting' && state !== 'stopping';
  switch (action) {
    case 'interrupt':
      return state === 'busy' || (formed && cluster.busy != null);
    case 'abort':
      return state === 'busy' || state === 'repairing' || (formed && cluster.busy != null);
    case 'stacks':
      return formed && state !== 'lost' && !failedStart(cluster);
    case 'measure':
      return state === 'idle' && cluster.size > 1;
    case 'restart':
      return formed && !failedStart(cluster);
    case 'stop':
      return state !== 'stopping';
    case 'dismiss':
      return failedStart(cluster);
    case 'insert':
      return formed && !failedStart(cluster);
    case 'logs':
      return true;
  }
}
