// What every component of the page may need.

import { createContext, useContext, useSyncExternalStore } from 'react';

import type { ActionState, Actions } from './actions.js';
import type { Api } from './api.js';
import type { Snapshot, Store, Viewer } from './store.js';
import type { Trans } from './trans.js';
import type { ViewKind } from './types.js';

export type TabKind = ViewKind | 'logs' | 'stacks';

/** Which tab: of a cluster, for shards of a model, for logs perhaps of one rank. */
export interface TabArgs {
  kind: TabKind;
  cluster: string;
  model?: string | null;
  log?: string | null;
}

export interface Services {
  store: Store;
  api: Api;
  actions: Actions;
  trans: Trans;
  /** Run one of our commands. */
  execute(id: string, args?: object): void;
  open(args: TabArgs): void;
  copy(text: string): void;
  /** Back to the main area. */
  leave(): void;
  startDrag(text: string, x: number, y: number): void;
}

export const ServicesContext = createContext<Services | null>(null);
export const ViewerContext = createContext<Viewer>({ visible: true });

export function useServices(): Services {
  const services = useContext(ServicesContext);
  if (!services) {
    throw new Error('there is no ServicesContext around this component');
  }
  return services;
}

export function useSnapshot(): Snapshot {
  const { store } = useServices();
  return useSyncExternalStore(
    listener => store.subscribe(listener),
    () => store.snapshot
  );
}

export function useActionState(): ActionState {
  const { actions } = useServices();
  return useSyncExternalStore(
    listener => actions.subscribe(listener),
    () => actions.state
  );
}
