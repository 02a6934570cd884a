// The widgets around the components: the sidebar, the tabs, the item of the status bar.

import { ReactWidget } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import {
  ServicesContext,
  ViewerContext,
  useServices,
  useSnapshot,
  type Services,
  type TabArgs
} from './context.js';
import { clusterIcon } from './icons.js';
import { Mark, stateWords } from './parts.js';
import { CommandIDs, Sidebar, sizeWords } from './sidebar.js';
import type { Viewer } from './store.js';
import { Tab, tabId, tabTitle } from './tabs.js';

/** A widget that tells the store whether it can be seen. */
abstract class Watching extends ReactWidget {
  readonly viewer: Viewer = { visible: false };
  private readonly _leave: () => void;

  constructor(
    protected readonly services: Services,
    slow = false
  ) {
    super();
    this.viewer.slow = slow;
    this._leave = services.store.look(this.viewer);
  }

  protected abstract content(): React.ReactElement;

  protected render(): React.ReactElement {
    return (
      <ServicesContext.Provider value={this.services}>
        <ViewerContext.Provider value={this.viewer}>{this.content()}</ViewerContext.Provider>
      </ServicesContext.Provider>
    );
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this._leave();
    }
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this._look();
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this._look();
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._look();
  }

  protected override onAfterDetach(message: Message): void {
    super.onAfterDetach(message);
    this._look();
  }

  private _look(): void {
    if (this.viewer.visible !== this.isVisible) {
      this.viewer.visible = this.isVisible;
      this.services.store.tell();
    }
  }
}

export class SidebarPanel extends Watching {
  constructor(services: Services) {
    super(services);
    this.id = 'macluster-sidebar';
    this.addClass('mcl-Sidebar');
    this.title.icon = clusterIcon;
    this.title.caption = services.trans.__('macluster');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', services.trans.__('macluster'));
  }

  protected content(): React.ReactElement {
    return <Sidebar />;
  }

  protected override onActivateRequest(): void {
    const target =
      this.node.querySelector<HTMLElement>('[role="option"][aria-selected="true"]') ??
      this.node.querySelector<HTMLElement>('button:not([aria-disabled])');
    target?.focus();
  }
}

export class ClusterTab extends Watching {
  private _asked = 0;

  constructor(
    services: Services,
    private _args: TabArgs
  ) {
    super(services);
    this.id = tabId(_args);
    this.addClass('mcl-TabWidget');
    this.title.label = tabTitle(_args, services.trans);
    this.title.caption = this.title.label;
    this.title.icon = clusterIcon;
    this.title.closable = true;
    this.node.tabIndex = -1;
  }

  get args(): TabArgs {
    return this._args;
  }

  /** Asked for once more: read logs and stacks again, show this rank. */
  ask(args: TabArgs): void {
    this._args = args;
    this._asked += 1;
    this.update();
  }

  protected content(): React.ReactElement {
    return <Tab args={this._args} asked={this._asked} />;
  }

  protected override onActivateRequest(): void {
    this.node.focus();
  }
}

export class StatusItem extends Watching {
  constructor(services: Services) {
    super(services, true);
    this.addClass('mcl-StatusItem');
  }

  protected content(): React.ReactElement {
    return <Status />;
  }
}

function Status(): React.ReactElement | null {
  const { trans, execute, store } = useServices();
  const snapshot = useSnapshot();
  const cluster = store.cluster(snapshot.chosen);
  if (!cluster) {
    return null;
  }
  const stale = snapshot.link !== 'live';
  const words = [
    sizeWords(cluster, trans),
    cluster.backend,
    stale ? trans.__('stale') : stateWords(cluster.state, trans)
  ].filter(Boolean);
  return (
    <button
      type="button"
      className="mcl-Status"
      title={trans.__('Cluster %1: open the sidebar', cluster.name)}
      data-testid="macluster-status"
      onClick={() => execute(CommandIDs.show)}
    >
      <Mark state={stale ? 'lost' : cluster.state} />
      {words.join(' · ')}
    </button>
  );
}
