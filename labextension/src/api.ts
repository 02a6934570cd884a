// The server's REST interface, with errors that say what, why and what to do.

import { english, type Trans } from './trans.js';
import type { Choice, Fault, Hosts, Log } from './types.js';

export interface Answer {
  status: number;
  /** The body as text: an error page of a proxy is no JSON. */
  text: string;
}

export type Ask = (method: 'GET' | 'POST', path: string, body?: unknown) => Promise<Answer>;

/** What can be wrong without the server saying so. */
export const absent = (trans: Trans): Fault => ({
  message: trans.__('The server side of macluster does not answer.'),
  why: trans.__('The Jupyter server has no macluster extension, or it is turned off.'),
  do: trans.__(
    'In the environment of the Jupyter server: pip install macluster, then ' +
      'jupyter server extension enable macluster, and start JupyterLab again.'
  )
});

export const refused = (trans: Trans): Fault => ({
  message: trans.__('The Jupyter server refuses this page.'),
  why: trans.__('The login has expired, or the server was started again with another token.'),
  do: trans.__('Reload the page and log in again.')
});

export const gone = (trans: Trans): Fault => ({
  message: trans.__('The Jupyter server does not answer.'),
  why: trans.__('It has ended, or the network is down.'),
  do: trans.__('See whether the server still runs. This page comes back by itself.')
});

export class ApiError extends Error {
  constructor(
    readonly fault: Fault,
    readonly status: number
  ) {
    super(fault.message);
  }
}

const words = (value: unknown): string => (typeof value === 'string' ? value : '');

/** What went wrong, from an answer that is not a success. */
export function faultOf({ status, text }: Answer, trans: Trans): Fault {
  let body: Record<string, unknown> = {};
  try {
    const found: unknown = JSON.parse(text);
    if (typeof found === 'object' && found !== null) {
      body = found as Record<string, unknown>;
    }
  } catch {
    // A page of a proxy, or nothing.
  }
  const message = words(body.message);
  // Ours name a cause or a remedy; Jupyter's own "Not Found" does not.
  if (message && (words(body.why) || words(body.do))) {
    return { message, why: words(body.why), do: words(body.do) };
  }
  if (status === 404) {
    return absent(trans);
  }
  if (status === 401 || status === 403) {
    return refused(trans);
  }
  return {
    message: message || trans.__('The server answered with status %1.', status),
    why: '',
    do: trans.__('The log of the Jupyter server says more.')
  };
}

/** A fault from whatever was thrown. */
export function asFault(error: unknown): Fault {
  if (error instanceof ApiError) {
    return error.fault;
  }
  return { message: error instanceof Error ? error.message : String(error), why: '', do: '' };
}

export type Action = 'stop' | 'restart' | 'interrupt' | 'abort' | 'dismiss' | 'measure';

export class Api {
  constructor(
    private readonly ask: Ask,
    private readonly trans: Trans = english
  ) {}

  clusters(): Promise<unknown> {
    return this._json('GET', 'clusters');
  }

  async start(wish: {
    hosts: Hosts;
    backend: string | null;
    name: string;
    checked: boolean;
  }): Promise<string> {
    const { name } = await this._json<{ name: string }>('POST', 'clusters', wish);
    return name;
  }

  choice(hosts: Hosts, backend: string | null): Promise<Choice> {
    return this._json('POST', 'choice', { hosts, backend });
  }

  async act(cluster: string, action: Action): Promise<string> {
    const found = await this._json<{ words?: string }>('POST', `${path(cluster)}/${action}`, {});
    return found.words ?? '';
  }

  async stacks(cluster: string): Promise<string> {
    return (await this._json<{ text: string }>('GET', `${path(cluster)}/stacks`)).text;
  }

  async logs(cluster: string): Promise<Log[]> {
    return (await this._json<{ logs: Log[] }>('GET', `${path(cluster)}/logs`)).logs;
  }

  async connect(cluster: string): Promise<string> {
    return (await this._json<{ code: string }>('GET', `${path(cluster)}/connect`)).code;
  }

  private async _json<T>(method: 'GET' | 'POST', where: string, body?: unknown): Promise<T> {
    let answer: Answer;
    try {
      answer = await this.ask(method, where, body);
    } catch {
      throw new ApiError(gone(this.trans), 0);
    }
    if (answer.status < 200 || answer.status > 299) {
      throw new ApiError(faultOf(answer, this.trans), answer.status);
    }
    try {
      return JSON.parse(answer.text) as T;
    } catch {
      throw new ApiError(faultOf({ status: answer.status, text: '' }, this.trans), answer.status);
    }
  }
}

const path = (cluster: string): string => `clusters/${encodeURIComponent(cluster)}`;
