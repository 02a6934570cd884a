// The plugin: the sidebar, its tabs, commands, status item and settings.

import {
  ILabShell,
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin
} from '@jupyterlab/application';
import {
  Clipboard,
  Dialog,
  ICommandPalette,
  Notification,
  WidgetTracker,
  showDialog
} from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { addIcon, copyIcon, refreshIcon, stopIcon } from '@jupyterlab/ui-components';
import { MimeData, PromiseDelegate } from '@lumino/coreutils';
import { Drag } from '@lumino/dragdrop';

import { Actions, allowed, type Notice } from './actions.js';
import { Api, type Action } from './api.js';
import { dragData, insertCode, onEmptyCell } from './connect.js';
import type { Services, TabArgs } from './context.js';
import { clusterIcon } from './icons.js';
import { ClusterTab, SidebarPanel, StatusItem } from './panels.js';
import { asker, browserPage } from './server.js';
import { CommandIDs } from './sidebar.js';
import { askAndStart } from './start.js';
import { Store } from './store.js';
import { remembering, type Trans } from './trans.js';
import type { Cluster } from './types.js';

const PLUGIN = 'macluster:plugin';
// Before ipyparallel's sidebar, which has 200.
const RANK = 190;

interface Settings {
  showSidebar: boolean;
  side: 'left' | 'right';
  period: number;
  showStatus: boolean;
  askBeforeStop: boolean;
}

const DEFAULTS: Settings = {
  showSidebar: true,
  side: 'right',
  period: 0.5,
  showStatus: true,
  askBeforeStop: true
};

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'The clusters of macluster in a sidebar.',
  autoStart: true,
  requires: [ILabShell],
  optional: [
    ICommandPalette,
    ILauncher,
    ILayoutRestorer,
    ISettingRegistry,
    IStatusBar,
    ITranslator
  ],
  activate
};

export default plugin;

async function activate(
  app: JupyterFrontEnd,
  shell: ILabShell,
  palette: ICommandPalette | null,
  launcher: ILauncher | null,
  restorer: ILayoutRestorer | null,
  registry: ISettingRegistry | null,
  statusBar: IStatusBar | null,
  translator: ITranslator | null
): Promise<void> {
  const trans = remembering((translator ?? nullTranslator).load('macluster'));
  const server = app.serviceManager.serverSettings;
  const store = new Store(browserPage(server, trans));
  const api = new Api(asker(server), trans);
  const settings: Settings = { ...DEFAULTS };

  let panel: SidebarPanel | null = null;
  const actions = new Actions(api, notice => {
    if (!panel?.isVisible) {
      notify(notice, trans);
    }
  });
  const services: Services = {
    store,
    api,
    actions,
    trans,
    execute: (id, args) => void app.commands.execute(id, args as never),
    open: args => void app.commands.execute(CommandIDs.open, args as never),
    copy: text => {
      Clipboard.copyToSystem(text);
      Notification.success(trans.__('Copied'), { autoClose: 1500 });
    },
    leave: () => shell.currentWidget?.activate(),
    startDrag
  };

  const tabs = new WidgetTracker<ClusterTab>({ namespace: 'macluster' });
  // Until the settings are read, nobody knows where the sidebar goes: who wants it waits.
  const ready = new PromiseDelegate<void>();
  addCommands(app, shell, services, settings, tabs, () => panel, ready.promise);
  if (restorer) {
    void restorer.restore(tabs, {
      command: CommandIDs.open,
      args: tab => ({ ...tab.args, log: null }) as never,
      name: tab => tab.id
    });
  }

  // -- the sidebar and the status bar, as the settings want them ----------------------------------

  const status = statusBar ? new StatusItem(services) : null;
  let stopStatus: { dispose(): void } | null = null;
  let side: Settings['side'] | null = null;
  const settle = (): void => {
    store.period = settings.period;
    if (settings.showSidebar) {
      if (!panel) {
        panel = new SidebarPanel(services);
        restorer?.add(panel, panel.id);
        side = null;
      }
      if (side !== settings.side) {
        shell.add(panel, settings.side, { rank: RANK, type: 'macluster' });
        side = settings.side;
      }
    } else {
      panel?.dispose();
      panel = null;
    }
    if (statusBar && status) {
      if (settings.showStatus && !stopStatus) {
        stopStatus = statusBar.registerStatusItem('macluster:status', {
          item: status,
          align: 'left',
          rank: 5
        });
      } else if (!settings.showStatus && stopStatus) {
        stopStatus.dispose();
        stopStatus = null;
        status.parent = null;
      }
    }
  };
  if (registry) {
    try {
      const loaded = await registry.load(PLUGIN);
      const read = (): void => {
        Object.assign(settings, DEFAULTS, loaded.composite);
        settle();
      };
      loaded.changed.connect(read);
      read();
    } catch (error) {
      console.warn('macluster: the settings could not be read, the defaults are used', error);
      settle();
    }
  } else {
    settle();
  }

  ready.resolve();

  // -- the palette and the launcher ---------------------------------------------------------------

  const category = 'macluster';
  for (const id of [
    CommandIDs.create,
    CommandIDs.show,
    CommandIDs.interrupt,
    CommandIDs.abort,
    CommandIDs.stacks,
    CommandIDs.logs,
    CommandIDs.topology,
    CommandIDs.measurement,
    CommandIDs.measure,
    CommandIDs.shards,
    CommandIDs.insert,
    CommandIDs.copyConnect,
    CommandIDs.restart,
    CommandIDs.stop,
    CommandIDs.reconnect
  ]) {
    palette?.addItem({ command: id, category });
  }
  launcher?.add({
    command: CommandIDs.create,
    category: trans.__('Other'),
    rank: 5,
    args: { launcher: true }
  });

  // -- the page -----------------------------------------------------------------------------------

  let before = '';
  store.subscribe(() => {
    // Labels name the chosen cluster, and what is possible depends on its state.
    const { chosen, link } = store.snapshot;
    const cluster = store.cluster(chosen);
    const now = JSON.stringify([chosen, link, cluster?.state, Object.keys(cluster?.models ?? {})]);
    if (now !== before) {
      before = now;
      app.commands.notifyCommandChanged();
    }
  });
  const wake = (): void => store.wake();
  document.addEventListener('visibilitychange', wake);
  window.addEventListener('online', wake);
  window.addEventListener('pageshow', wake);
  store.start();
}

// -- commands --------------------------------------------------------------------------------------

interface Args {
  cluster?: string;
  model?: string;
  log?: string;
  launcher?: boolean;
}

function addCommands(
  app: JupyterFrontEnd,
  shell: ILabShell,
  services: Services,
  settings: Settings,
  tabs: WidgetTracker<ClusterTab>,
  panel: () => SidebarPanel | null,
  ready: Promise<void>
): void {
  const { store, api, actions, trans } = services;

  // The place of the last right click is remembered for ever: it counts while its menu is open.
  let menuOpen = false;
  document.addEventListener(
    'contextmenu',
    event => {
      menuOpen = panel()?.node.contains(event.target as Node) ?? false;
    },
    true
  );
  app.contextMenu.menu.aboutToClose.connect(() => {
    // The chosen command runs right after the menu has closed.
    window.setTimeout(() => {
      menuOpen = false;
    });
  });
  /** What a menu was opened on. */
  const hit = (attribute: string): string | undefined =>
    menuOpen
      ? app.contextMenuHitTest(node => attribute in node.dataset)?.dataset[attribute]
      : undefined;
  const nameOf = (args: Args): string | null =>
    args.cluster ?? hit('cluster') ?? store.snapshot.chosen;
  const clusterOf = (args: Args): Cluster | null => store.cluster(nameOf(args));
  const live = (): boolean => store.snapshot.link === 'live';
  const labelled =
    (short: string, long: (name: string) => string) =>
    (args: Args): string => {
      const name = nameOf(args);
      return hit('cluster') !== undefined || name === null ? short : long(name);
    };

  const act = async (action: Action, args: Args): Promise<void> => {
    const name = nameOf(args);
    if (name !== null) {
      await actions.act(name, action);
    }
  };
  const sure = async (action: 'stop' | 'restart', cluster: Cluster): Promise<boolean> => {
    if (!settings.askBeforeStop) {
      return true;
    }
    const title =
      action === 'stop'
        ? trans.__('Stop the cluster %1?', cluster.name)
        : trans.__('Restart the cluster %1?', cluster.name);
    const { button } = await showDialog({
      title,
      body: lost(cluster, action, trans),
      buttons: [
        Dialog.cancelButton(),
        Dialog.warnButton({ label: action === 'stop' ? trans.__('Stop') : trans.__('Restart') })
      ]
    });
    return button.accept;
  };
  const simple = (
    action: Action,
    short: string,
    long: (name: string) => string,
    ask = false
  ): void => {
    app.commands.addCommand(CommandIDs[action], {
      label: labelled(short, long) as never,
      isEnabled: args => {
        const cluster = clusterOf(args as Args);
        return live() && cluster !== null && allowed(cluster, action);
      },
      // There is seldom something to dismiss: then it is not offered.
      isVisible: args => {
        const cluster = clusterOf(args as Args);
        return action !== 'dismiss' || (cluster !== null && allowed(cluster, action));
      },
      ...(action === 'restart' ? { icon: refreshIcon } : {}),
      ...(action === 'stop' ? { icon: stopIcon } : {}),
      execute: async args => {
        const cluster = clusterOf(args as Args);
        if (cluster && (!ask || (await sure(action as 'stop' | 'restart', cluster)))) {
          await act(action, { cluster: cluster.name });
        }
      }
    });
  };
  simple('stop', trans.__('Stop…'), n => trans.__('Stop %1…', n), true);
  simple('restart', trans.__('Restart…'), n => trans.__('Restart %1…', n), true);
  simple('interrupt', trans.__('Interrupt'), n => trans.__('Interrupt %1', n));
  simple('abort', trans.__('Abort'), n => trans.__('Abort %1', n));
  simple('dismiss', trans.__('Dismiss'), n => trans.__('Dismiss %1', n));
  simple('measure', trans.__('Measure Links'), n => trans.__('Measure the Links of %1', n));

  app.commands.addCommand(CommandIDs.create, {
    label: args => (args.launcher ? trans.__('New Cluster') : trans.__('New Cluster…')),
    caption: trans.__('Start ranks on this machine or on your Macs'),
    icon: args => (args.launcher ? clusterIcon : addIcon),
    execute: async () => {
      await ready;
      if (panel()) {
        shell.activateById('macluster-sidebar');
      }
      const { problem, link } = store.snapshot;
      if (problem || link !== 'live') {
        // The sidebar says it already, where there is one.
        if (!panel()?.isVisible) {
          Notification.error(
            problem ? `${problem.message} ${problem.do}` : trans.__('The server is not heard.')
          );
        }
        return;
      }
      const name = await askAndStart(services);
      if (name) {
        store.choose(name);
      }
    }
  });
  app.commands.addCommand(CommandIDs.show, {
    label: trans.__('Show Clusters'),
    icon: clusterIcon,
    isEnabled: () => panel() !== null,
    execute: async () => {
      await ready;
      shell.activateById('macluster-sidebar');
    }
  });
  app.commands.addCommand(CommandIDs.reconnect, {
    label: trans.__('Reconnect to the Server'),
    execute: () => store.reconnect()
  });

  // -- tabs --

  app.commands.addCommand(CommandIDs.open, {
    label: trans.__('Open a View of a Cluster'),
    isVisible: () => false,
    execute: args => {
      const wanted = args as unknown as TabArgs;
      const made = new ClusterTab(services, { ...wanted, model: wanted.model ?? null });
      const known = tabs.find(tab => tab.id === made.id);
      if (known) {
        made.dispose();
        known.ask(wanted);
        shell.activateById(known.id);
        return known;
      }
      void tabs.add(made);
      shell.add(made, 'main', { type: 'macluster' });
      shell.activateById(made.id);
      return made;
    }
  });
  const opens = (
    id: string,
    kind: TabArgs['kind'],
    short: string,
    long: (name: string) => string,
    possible: (cluster: Cluster) => boolean = () => true
  ): void => {
    app.commands.addCommand(id, {
      label: labelled(short, long) as never,
      isEnabled: args => {
        const cluster = clusterOf(args as Args);
        return cluster !== null && possible(cluster);
      },
      execute: args => {
        const { model, log } = args as Args;
        const cluster = clusterOf(args as Args);
        if (cluster) {
          const rank = hit('rank');
          services.open({
            kind,
            cluster: cluster.name,
            model: kind === 'shards' ? (model ?? Object.keys(cluster.models ?? {})[0] ?? null) : null,
            log: log ?? (kind === 'logs' && rank !== undefined ? `rank ${rank}` : null)
          });
        }
      }
    });
  };
  opens(CommandIDs.topology, 'topology', trans.__('Open Wiring'), n => trans.__('Open Wiring of %1', n));
  opens(
    CommandIDs.measurement,
    'measurement',
    trans.__('Open Measurements'),
    n => trans.__('Open Measurements of %1', n)
  );
  opens(
    CommandIDs.shards,
    'shards',
    trans.__('Open Sharding'),
    n => trans.__('Open Sharding on %1', n),
    cluster => Object.keys(cluster.models ?? {}).length > 0
  );
  opens(CommandIDs.logs, 'logs', trans.__('Open Logs'), n => trans.__('Open Logs of %1', n));
  opens(
    CommandIDs.stacks,
    'stacks',
    trans.__('Open Stacks'),
    n => trans.__('Open Stacks of %1', n),
    cluster => allowed(cluster, 'stacks')
  );

  // -- connect --

  const canConnect = (args: Args): boolean => {
    const cluster = clusterOf(args);
    return live() && cluster !== null && allowed(cluster, 'insert');
  };
  app.commands.addCommand(CommandIDs.insert, {
    label: labelled(trans.__('Insert Connect Code'), n =>
      trans.__('Insert Code That Connects to %1', n)
    ) as never,
    isEnabled: args => canConnect(args as Args),
    execute: async args => {
      const name = nameOf(args as Args);
      if (name === null) {
        return;
      }
      await actions.run(name, 'insert', async () => {
        const code = await api.connect(name);
        if (!(await insertCode(app.commands, code, onEmptyCell(shell.currentWidget)))) {
          throw new Error(
            trans.__('No notebook is in front. Open one and try again, or copy the code.')
          );
        }
        return '';
      });
    }
  });
  app.commands.addCommand(CommandIDs.copyConnect, {
    label: labelled(trans.__('Copy Connect Code'), n =>
      trans.__('Copy Code That Connects to %1', n)
    ) as never,
    icon: copyIcon,
    isEnabled: args => canConnect(args as Args),
    execute: async args => {
      const name = nameOf(args as Args);
      if (name !== null) {
        await actions.run(name, 'insert', async () => {
          services.copy(await api.connect(name));
          return '';
        });
      }
    }
  });
  app.commands.addCommand(CommandIDs.copyLine, {
    label: trans.__('Copy What It Is Doing'),
    icon: copyIcon,
    isEnabled: () => Boolean(lineOf()),
    execute: () => services.copy(lineOf())
  });
  const lineOf = (): string => {
    const rank = hit('rank');
    return rank === undefined ? '' : (clusterOf({})?.ranks[rank]?.doing ?? '');
  };
}

/** What a stop or a restart costs, in words. */
function lost(cluster: Cluster, action: 'stop' | 'restart', trans: Trans): string {
  const found = [];
  const { busy, serving } = cluster;
  if (busy || cluster.state === 'busy') {
    found.push(trans.__('A cell is running: it is broken off.'));
  }
  const models = Object.keys(cluster.models ?? {});
  found.push(
    models.length
      ? trans.__(
          'All variables of its %1 are lost, with the models %2.',
          trans._n('%1 rank', '%1 ranks', cluster.size),
          models.join(', ')
        )
      : trans.__(
          'All variables of its %1 are lost.',
          trans._n('%1 rank', '%1 ranks', cluster.size)
        )
  );
  if (serving) {
    found.push(trans.__('%1 answers no more.', serving));
  }
  if (action === 'restart') {
    found.push(trans.__('The ranks begin anew on the same hosts, and notebooks stay connected.'));
  }
  return found.join(' ');
}

/** For who does not see the sidebar. */
function notify(notice: Notice, trans: Trans): void {
  const { cluster, fault, words } = notice;
  if (fault) {
    const text = [fault.message, fault.why, fault.do].filter(Boolean).join(' ');
    Notification.error(trans.__('%1: %2', cluster, text), { autoClose: false });
  } else {
    Notification.success(trans.__('%1: %2', cluster, words), { autoClose: 5000 });
  }
}

function startDrag(text: string, x: number, y: number): void {
  const data = new MimeData();
  for (const [mime, value] of dragData(text)) {
    data.setData(mime, value);
  }
  const image = document.createElement('pre');
  image.className = 'mcl-Drag';
  image.textContent = text;
  const drag = new Drag({
    mimeData: data,
    dragImage: image,
    proposedAction: 'copy',
    supportedActions: 'copy'
  });
  void drag.start(x, y).then(() => drag.dispose());
}
