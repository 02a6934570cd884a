// The notebook widgets' renderers, fed from the websocket instead of a kernel.

import type { Traits, ViewKind } from './types.js';

type Listener = () => void;

interface Renderer {
  default: { render(context: { model: ViewModel; el: HTMLElement }): unknown };
}

/** What a renderer takes for its widget's model. */
export class ViewModel {
  private _traits: Traits;
  private readonly _listeners = new Map<string, Set<Listener>>();

  constructor(traits: Traits) {
    this._traits = { ...traits };
  }

  get(name: string): unknown {
    return this._traits[name];
  }

  on(event: string, listener: Listener): void {
    const found = this._listeners.get(event) ?? new Set();
    found.add(listener);
    this._listeners.set(event, found);
  }

  off(event: string, listener: Listener): void {
    this._listeners.get(event)?.delete(listener);
  }

  // There is no kernel behind it to be told anything.
  send(): void {}
  save_changes(): void {}

  /** Change all of them before anybody hears of it: a listener may read several. */
  update(traits: Traits): void {
    Object.assign(this._traits, traits);
    for (const name of Object.keys(traits)) {
      for (const listener of [...(this._listeners.get(`change:${name}`) ?? [])]) {
        listener();
      }
    }
  }
}

const LOADERS: Record<ViewKind, () => Promise<unknown>> = {
  topology: () => import('./views/topology.js'),
  measurement: () => import('./views/measure.js'),
  shards: () => import('./views/shards.js')
};

// Without these a renderer cannot begin.
const NEEDED: Record<ViewKind, string[]> = {
  topology: ['scene', 'figures', 'link_figures', 'status'],
  measurement: ['data'],
  shards: ['scene', 'title']
};

/** loading; shown; empty: nothing is known yet; or why it cannot be shown. */
export type ViewState = 'loading' | 'shown' | 'empty' | { error: string };

/** Keeps one renderer in an element, from the first traits to the last. */
export class LiveView {
  private _model: ViewModel | null = null;
  private _cleanup: unknown = null;
  private _renderer: Renderer | null = null;
  private _waiting: Traits | null = null;
  private _disposed = false;

  constructor(
    private readonly el: HTMLElement,
    private readonly kind: ViewKind,
    private readonly changed: (state: ViewState) => void
  ) {}

  update(traits: Traits): void {
    if (typeof traits.error === 'string') {
      this._clear();
      this.changed({ error: traits.error });
      return;
    }
    if (this._model) {
      if (this.kind === 'measurement' && traits.data === null) {
        this._clear();
        this.changed('empty');
      } else if (this.kind === 'shards') {
        // This renderer draws once: its widget never changes.
        const all = { scene: this._model.get('scene'), title: this._model.get('title'), ...traits };
        this._clear();
        this._begin(all);
      } else {
        this._model.update(traits);
      }
      return;
    }
    this._begin({ ...this._waiting, ...traits });
  }

  dispose(): void {
    this._disposed = true;
    this._clear();
  }

  private _begin(traits: Traits): void {
    if (this.kind === 'measurement' && traits.data === null) {
      this._waiting = null;
      this.changed('empty');
      return;
    }
    this._waiting = traits;
    if (!NEEDED[this.kind].every(name => name in traits)) {
      return;
    }
    if (this._renderer) {
      this._render(this._renderer);
      return;
    }
    this.changed('loading');
    void LOADERS[this.kind]().then(
      loaded => {
        this._renderer = loaded as Renderer;
        if (!this._disposed && !this._model && this._waiting) {
          this._render(this._renderer);
        }
      },
      () => this.changed({ error: 'This view could not be loaded. Reload the page.' })
    );
  }

  private _render(renderer: Renderer): void {
    const traits = this._waiting ?? {};
    this._waiting = null;
    this._model = new ViewModel(traits);
    this._cleanup = renderer.default.render({ model: this._model, el: this.el });
    this.changed('shown');
  }

  private _clear(): void {
    this._waiting = null;
    this._model = null;
    if (typeof this._cleanup === 'function') {
      (this._cleanup as () => void)();
    }
    this._cleanup = null;
    this.el.replaceChildren();
  }
}
