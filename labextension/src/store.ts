// What the page knows of the clusters: one websocket, whoever looks at it.
// Nothing of JupyterLab and nothing of the DOM in here: a test plays the page with a false clock.

import { mergePatch, same } from './patch.js';
import { viewKey } from './types.js';
import type { Cluster, Fault, Message, State, Traits, View, Want } from './types.js';

/** Nothing heard for so long, though the server sends "alive" every 5 s: what is shown is old. */
export const STALE_AFTER = 12;
/** How often silence is looked for. A much longer gap between two looks is a laptop that slept. */
export const WATCH_EVERY = 3;
export const FIRST_DELAY = 0.5;
export const LONGEST_DELAY = 15;
/** Without the server extension, a quicker look would help nobody. */
export const ABSENT_DELAY = 30;
/** The status bar alone is content with this; in seconds. */
export const SLOW_PERIOD = 2;

export interface Socket {
  send(text: string): void;
  close(): void;
}

export interface SocketEvents {
  open(): void;
  message(text: string): void;
  close(): void;
}

/** What the store needs of the page it lives in. */
export interface Page {
  connect(events: SocketEvents): Socket;
  /** Unix seconds. */
  now(): number;
  /** Calls once, later; returns how to call it off. */
  after(seconds: number, call: () => void): () => void;
  hidden(): boolean;
  /** 0..1, so that many pages do not come back in the same instant. */
  random(): number;
  /** Why there is no connection; null: the server is just not there. */
  diagnose(): Promise<Problem | null>;
}

export interface Problem {
  kind: 'absent' | 'refused';
  fault: Fault;
}

/** connecting: the first time; stale: there was something, and it is old by now. */
export type Link = 'connecting' | 'live' | 'stale' | 'absent' | 'refused';

export interface Snapshot {
  link: Link;
  state: State | null;
  chosen: string | null;
  problem: Fault | null;
}

/** Somebody who looks: the sidebar, a tab, the status bar. */
export interface Viewer {
  visible: boolean;
  /** Content with SLOW_PERIOD. */
  slow?: boolean;
}

interface ViewEntry {
  view: View;
  /** Each says whether it can be seen at the moment. */
  listeners: Map<(traits: Traits) => void, Viewer>;
  traits: Traits | null;
}

export class Store {
  private _snapshot: Snapshot = { link: 'connecting', state: null, chosen: null, problem: null };
  private readonly _listeners = new Set<() => void>();
  private readonly _viewers = new Set<Viewer>();
  private readonly _views = new Map<string, ViewEntry>();
  private _period = 0.5;
  private _wish: string | null = null;
  private _socket: Socket | null = null;
  private _open = false;
  private _failures = 0;
  private _socketAt = 0; // page time of the last attempt, or since when it is open
  private _heardAt = 0; // page time of the last message
  private _offset = 0; // the server's clock less the page's
  private _clockSet = false;
  private _sent: Want | null = null;
  private _lookedAt = 0;
  private _stopWatch: (() => void) | null = null;
  private _stopRetry: (() => void) | null = null;
  private _stopTell: (() => void) | null = null;
  private _disposed = false;

  constructor(private readonly page: Page) {}

  // -- what is known -----------------------------------------------------------------------------

  get snapshot(): Snapshot {
    return this._snapshot;
  }

  subscribe(listener: () => void): () => void {
    this._listeners.add(listener);
    return () => {
      this._listeners.delete(listener);
    };
  }

  cluster(name: string | null): Cluster | null {
    const clusters = this._snapshot.state?.clusters;
    return name !== null && clusters && Object.hasOwn(clusters, name) ? clusters[name] : null;
  }

  /** The server's time; it stands still while nothing is heard: what is old must not look alive. */
  time(): number {
    const page = this._snapshot.link === 'live' ? this.page.now() : this._heardAt;
    return page + this._offset;
  }

  /** Seconds since the last message. */
  silence(): number {
    return this._heardAt ? Math.max(0, this.page.now() - this._heardAt) : 0;
  }

  // -- what is looked at -------------------------------------------------------------------------

  choose(name: string | null): void {
    this._wish = name;
    this._set({});
    this.tell();
  }

  set period(seconds: number) {
    this._period = Math.min(5, Math.max(0.25, seconds));
    this.tell();
  }

  /** Begin to look; `tell` after each change of `visible`. */
  look(viewer: Viewer): () => void {
    this._viewers.add(viewer);
    this.tell();
    return () => {
      this._viewers.delete(viewer);
      this.tell();
    };
  }

  /** Be given a view's traits, at once those that are known. */
  watch(view: View, viewer: Viewer, listener: (traits: Traits) => void): () => void {
    const key = viewKey(view);
    let entry = this._views.get(key);
    if (!entry) {
      entry = { view, listeners: new Map(), traits: null };
      this._views.set(key, entry);
    }
    entry.listeners.set(listener, viewer);
    if (entry.traits) {
      listener(entry.traits);
    }
    this.tell();
    const kept = entry;
    return () => {
      kept.listeners.delete(listener);
      this.tell();
    };
  }

  want(): Want {
    const awake = !this.page.hidden();
    const seen = [...this._viewers].filter(viewer => viewer.visible);
    const close = seen.some(viewer => !viewer.slow);
    const views = awake
      ? [...this._views.values()]
          .filter(entry => [...entry.listeners.values()].some(viewer => viewer.visible))
          .map(entry => entry.view)
      : [];
    const visible = awake && seen.length > 0;
    return {
      visible,
      chosen: visible && close ? this._snapshot.chosen : null,
      period: close ? this._period : Math.max(SLOW_PERIOD, this._period),
      views
    };
  }

  /** Something that is looked at has changed: the server hears of it once, in a moment. */
  tell(): void {
    if (this._stopTell || this._disposed) {
      return;
    }
    this._stopTell = this.page.after(0, () => {
      this._stopTell = null;
      this._tellNow();
    });
  }

  private _tellNow(): void {
    for (const [key, entry] of this._views) {
      if (!entry.listeners.size) {
        this._views.delete(key);
      }
    }
    const want = this.want();
    if (this._open && !same(want, this._sent)) {
      this._sent = want;
      this._socket?.send(JSON.stringify(want));
    }
  }

  // -- the connection ----------------------------------------------------------------------------

  start(): void {
    this._lookedAt = this.page.now();
    this._watch();
    this._connect();
  }

  dispose(): void {
    this._disposed = true;
    this._stopWatch?.();
    this._stopRetry?.();
    this._stopTell?.();
    this._drop();
    this._listeners.clear();
    this._viewers.clear();
    this._views.clear();
  }

  /** Try at once: somebody asked for it, or the page came back to life. */
  reconnect(): void {
    if (this._disposed) {
      return;
    }
    this._failures = 0;
    this._stopRetry?.();
    this._stopRetry = null;
    this._drop();
    this._connect();
  }

  /** The page was hidden or shown, or the network came back. */
  wake(): void {
    this._listen();
    if (!this._socket && !this.page.hidden()) {
      this.reconnect();
    }
    this.tell();
  }

  private _listen(): void {
    const now = this.page.now();
    const slept = now - this._lookedAt > WATCH_EVERY + STALE_AFTER;
    this._lookedAt = now;
    if (slept) {
      this._failures = 0;
    }
    if (this._socket && now - Math.max(this._heardAt, this._socketAt) > STALE_AFTER) {
      if (this._snapshot.state) {
        this._became('stale');
      }
      this.reconnect();
    } else if (slept && !this._socket) {
      this.reconnect();
    }
  }

  private _watch(): void {
    this._stopWatch = this.page.after(WATCH_EVERY, () => {
      this._listen();
      this._watch();
    });
  }

  private _connect(): void {
    let current: Socket | null = null;
    const mine = (): boolean => !this._disposed && current !== null && this._socket === current;
    const events: SocketEvents = {
      open: () => {
        if (mine()) {
          this._open = true;
          this._socketAt = this.page.now();
          this._sent = null;
          this._tellNow();
        }
      },
      message: text => {
        if (mine()) {
          this._receive(text);
        }
      },
      close: () => {
        if (mine()) {
          this._drop();
          this._lost();
        }
      }
    };
    this._socketAt = this.page.now();
    try {
      current = this.page.connect(events);
    } catch {
      this._lost();
      return;
    }
    this._socket = current;
  }

  private _drop(): void {
    const socket = this._socket;
    this._socket = null;
    this._open = false;
    this._sent = null;
    socket?.close();
  }

  private _lost(): void {
    this._became(this._snapshot.state ? 'stale' : this._snapshot.link);
    const base = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** Math.min(this._failures, 10));
    this._failures += 1;
    this._retry(base * (0.8 + 0.4 * this.page.random()));
    void this.page.diagnose().then(
      problem => this._explained(problem),
      () => undefined
    );
  }

  private _explained(problem: Problem | null): void {
    if (this._disposed || this._open) {
      return;
    }
    if (problem) {
      this._set({ link: problem.kind, problem: problem.fault });
      if (problem.kind === 'absent' && this._stopRetry) {
        this._retry(ABSENT_DELAY);
      }
    } else if (this._snapshot.link === 'absent' || this._snapshot.link === 'refused') {
      this._became(this._snapshot.state ? 'stale' : 'connecting');
    }
  }

  private _retry(seconds: number): void {
    this._stopRetry?.();
    this._stopRetry = this.page.after(seconds, () => {
      this._stopRetry = null;
      if (!this._socket && !this._disposed) {
        this._connect();
      }
    });
  }

  private _became(link: Link): void {
    if (link !== this._snapshot.link) {
      this._set({ link, problem: null });
    }
  }

  // -- messages ----------------------------------------------------------------------------------

  private _receive(text: string): void {
    let message: Message;
    try {
      message = JSON.parse(text) as Message;
    } catch {
      return; // not one of ours: the next one may be
    }
    this._heardAt = this.page.now();
    this._failures = 0;
    if (typeof message.now === 'number') {
      this._setClock(message.now - this._heardAt);
    }
    const changes: Partial<Snapshot> = {};
    if (message.state) {
      changes.state = mergeState(this._snapshot.state, message.state);
    } else if (message.patch !== undefined && this._snapshot.state) {
      changes.state = mergePatch(this._snapshot.state, message.patch) as State;
    }
    if (this._snapshot.link !== 'live' && (message.state || this._snapshot.state)) {
      changes.link = 'live';
      changes.problem = null;
    }
    if (Object.keys(changes).length) {
      this._set(changes);
    }
    if (message.view) {
      this._show(message.view, message.traits ?? {});
    }
  }

  // The message that came quickest tells best; a jump is a clock that was set.
  private _setClock(offset: number): void {
    if (!this._clockSet || Math.abs(offset - this._offset) > 2) {
      this._offset = offset;
      this._clockSet = true;
    } else {
      this._offset = Math.max(this._offset, offset);
    }
  }

  private _show(view: View, traits: Traits): void {
    const entry = this._views.get(viewKey({ ...view, model: view.model ?? null }));
    if (!entry) {
      return;
    }
    // What cannot be shown has no other traits, and what can be shown has no error.
    entry.traits =
      'error' in traits || entry.traits === null || 'error' in entry.traits
        ? traits
        : { ...entry.traits, ...traits };
    for (const listener of [...entry.listeners.keys()]) {
      listener(traits);
    }
  }

  private _set(changes: Partial<Snapshot>): void {
    const state = changes.state === undefined ? this._snapshot.state : changes.state;
    const next: Snapshot = { ...this._snapshot, ...changes, chosen: this._choice(state) };
    const before = this._snapshot;
    if ((Object.keys(next) as (keyof Snapshot)[]).every(name => next[name] === before[name])) {
      return;
    }
    this._snapshot = next;
    for (const listener of [...this._listeners]) {
      listener();
    }
    if (next.chosen !== before.chosen) {
      this.tell();
    }
  }

  // The one that was asked for; while it is not there, the first one.
  private _choice(state: State | null): string | null {
    if (!state) {
      return this._wish;
    }
    if (this._wish !== null && Object.hasOwn(state.clusters, this._wish)) {
      return this._wish;
    }
    return Object.keys(state.clusters).sort()[0] ?? null;
  }
}

// A full state: parts that are as they were stay the same objects, so that their rows stay drawn.
function mergeState(before: State | null, after: State): State {
  return before ? (share(before, after) as State) : after;
}

function share(before: unknown, after: unknown): unknown {
  if (Object.is(before, after) || typeof after !== 'object' || after === null) {
    return after;
  }
  if (Array.isArray(after) || Array.isArray(before) || typeof before !== 'object' || !before) {
    return same(before, after) ? before : after;
  }
  const old = before as Record<string, unknown>;
  const fresh = after as Record<string, unknown>;
  const names = Object.keys(fresh);
  let equal = names.length === Object.keys(old).length;
  const merged = Object.fromEntries(
    names.map(name => {
      const value = Object.hasOwn(old, name) ? share(old[name], fresh[name]) : fresh[name];
      equal &&= Object.hasOwn(old, name) && value === old[name];
      return [name, value];
    })
  );
  return equal ? before : merged;
}
