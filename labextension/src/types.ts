// What the server says. All times are unix seconds, all sizes bytes, all percentages 0-100.

export type ClusterState =
  | 'starting'
  | 'idle'
  | 'busy'
  | 'serving'
  | 'repairing'
  | 'stopping'
  | 'broken'
  | 'lost';

export type RankState = 'starting' | 'idle' | 'busy' | 'dead' | 'silent';

export interface Memory {
  total: number | null;
  used: number | null;
  wired: number | null;
  process: number | null;
  arrays: number | null;
  peak: number | null;
  cache: number | null;
  limit: number | null;
}

export interface Rank {
  rank: number;
  host: string;
  pid: number | null;
  state: RankState;
  doing: string;
  since: number | null;
  heard: number | null;
  memory: Partial<Memory> | null;
  cpu: number | null;
  host_cpu: number | null;
  gpu: number | null;
  collectives: { count: number | null; bytes: number | null; rate: number | null } | null;
  tokens: number | null;
}

export interface ModelRank {
  bytes: number | null;
  layers: [number, number] | null;
  share: number | null;
}

export interface Model {
  name: string;
  source: string;
  strategy: string;
  layers: number | null;
  ranks: Record<string, ModelRank>;
}

export interface Cluster {
  name: string;
  backend: string;
  reason: string;
  size: number;
  state: ClusterState;
  words: string;
  since: number | null;
  owner: string;
  kept: boolean;
  checked: boolean;
  serving: string;
  busy: { since: number | null; ranks: number[] } | null;
  failure: { words: string; at: number | null } | null;
  ranks: Record<string, Rank>;
  models: Record<string, Model>;
}

export interface State {
  clusters: Record<string, Cluster>;
  default_name: string;
}

export type ViewKind = 'topology' | 'measurement' | 'shards';

export interface View {
  cluster: string;
  kind: ViewKind;
  model: string | null;
}

export type Traits = Record<string, unknown>;

/** What the page tells the server: what somebody looks at. */
export interface Want {
  visible: boolean;
  chosen: string | null;
  period: number;
  views: View[];
}

export interface Message {
  now?: number;
  state?: State;
  patch?: unknown;
  view?: View;
  traits?: Traits;
  alive?: boolean;
}

/** Something went wrong: what, the probable cause, the remedy. */
export interface Fault {
  message: string;
  why: string;
  do: string;
}

export interface BackendChoice {
  name: string;
  fits: boolean;
  why: string;
}

export interface Choice {
  size: number;
  hosts: string[];
  backend: string;
  reason: string;
  backends: BackendChoice[];
}

export type Hosts = number | string | string[];

export interface Log {
  name: string;
  text: string;
}

export const viewKey = (view: View): string =>
  JSON.stringify([view.cluster, view.kind, view.model]);
