// The Jupyter server, as the store and the REST interface need it.

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { absent, refused, type Ask } from './api.js';
import type { Page, Problem, SocketEvents } from './store.js';
import type { Trans } from './trans.js';

const ROOT = 'macluster/api';

/** Asks the server; the login and the XSRF header go with it. */
export function asker(settings: ServerConnection.ISettings): Ask {
  return async (method, path, body) => {
    const response = await ServerConnection.makeRequest(
      URLExt.join(settings.baseUrl, ROOT, path),
      {
        method,
        ...(body === undefined
          ? {}
          : { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } })
      },
      settings
    );
    return { status: response.status, text: await response.text() };
  };
}

export function socketUrl(settings: ServerConnection.ISettings): string {
  const url = URLExt.join(settings.wsUrl, ROOT, 'live');
  // A websocket cannot carry a header: this is how all of JupyterLab logs in.
  return settings.appendToken && settings.token
    ? `${url}?token=${encodeURIComponent(settings.token)}`
    : url;
}

/** The browser's page around the store. */
export function browserPage(settings: ServerConnection.ISettings, trans: Trans): Page {
  const ask = asker(settings);
  return {
    connect(events: SocketEvents) {
      const socket = new settings.WebSocket(socketUrl(settings));
      socket.onopen = () => events.open();
      socket.onmessage = event => events.message(String(event.data));
      socket.onclose = () => events.close();
      return {
        send: text => {
          if (socket.readyState === 1) {
            socket.send(text);
          }
        },
        close: () => socket.close()
      };
    },
    now: () => Date.now() / 1000,
    after(seconds, call) {
      const timer = window.setTimeout(call, 1000 * seconds);
      return () => window.clearTimeout(timer);
    },
    hidden: () => document.visibilityState === 'hidden',
    random: Math.random,
    async diagnose(): Promise<Problem | null> {
      let status: number;
      try {
        ({ status } = await ask('GET', 'clusters'));
      } catch {
        return null;
      }
      if (status === 404) {
        return { kind: 'absent', fault: absent(trans) };
      }
      return status === 401 || status === 403 ? { kind: 'refused', fault: refused(trans) } : null;
    }
  };
}
