// The dialog that starts a cluster: where, how many, with which backend, and why that one.

import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import * as React from 'react';

import { asFault } from './api.js';
import { ServicesContext, useServices, type Services } from './context.js';
import { FaultBox } from './parts.js';
import type { Choice, Fault, Hosts } from './types.js';
import { parseWish, type Where, type Wish } from './wish.js';

const SETTLED = 400; // milliseconds after the last key

/** What the form and the dialog around it share. */
class Form {
  wish: Wish;
  submit: () => Promise<boolean> = () => Promise.resolve(false);
  constructor(name: string) {
    this.wish = { where: 'here', count: '4', path: '', list: '', name, backend: '', checked: false };
  }
}

class StartBody extends ReactWidget {
  constructor(
    private readonly services: Services,
    private readonly form: Form
  ) {
    super();
    this.addClass('mcl-Start');
  }

  protected render(): React.ReactElement {
    return (
      <ServicesContext.Provider value={this.services}>
        <StartForm form={this.form} />
      </ServicesContext.Provider>
    );
  }
}

/** Closes only when the server has taken the order; until then errors stand in the form. */
class StartDialog extends Dialog<void> {
  private _busy = false;

  constructor(
    options: Partial<Dialog.IOptions<void>>,
    private readonly form: Form
  ) {
    super(options);
    this.node.ariaLabel = String(options.title);
  }

  override resolve(index = 1): void {
    if (index === 0) {
      super.resolve(index);
      return;
    }
    if (this._busy) {
      return;
    }
    this._busy = true;
    void this.form.submit().then(done => {
      this._busy = false;
      if (done && !this.isDisposed) {
        super.resolve(index);
      }
    });
  }

  protected override _evtKeydown(event: KeyboardEvent): void {
    // Here a line ends, and does not start a cluster.
    if (event.key === 'Enter' && event.target instanceof HTMLTextAreaElement) {
      event.stopPropagation();
      return;
    }
    super._evtKeydown(event);
  }
}

/** Ask and start; the new cluster's name, or null. */
export async function askAndStart(services: Services): Promise<string | null> {
  const { trans, store } = services;
  const form = new Form(store.snapshot.state?.default_name ?? '');
  let started: string | null = null;
  const dialog = new StartDialog(
    {
      title: trans.__('New Cluster'),
      body: new StartBody(services, form),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.okButton({ label: trans.__('Start'), caption: trans.__('Start the cluster') })
      ],
      defaultButton: 1,
      focusNodeSelector: 'input[name="count"]',
      hasClose: true
    },
    form
  );
  dialog.addClass('mcl-StartDialog');
  const { button } = await dialog.launch();
  if (button.accept) {
    started = form.wish.name.trim();
  }
  return started;
}

function StartForm({ form }: { form: Form }): React.ReactElement {
  const { trans, api, store } = useServices();
  const [wish, setWish] = React.useState(form.wish);
  const [fault, setFault] = React.useState<Fault | null>(null);
  const [starting, setStarting] = React.useState(false);
  const [found, setFound] = React.useState<{
    choice: Choice | null;
    fault: Fault | null;
    asking: boolean;
  }>({ choice: null, fault: null, asking: false });
  const change = (changes: Partial<Wish>): void => {
    setFault(null);
    setWish(before => ({ ...before, ...changes }));
  };
  form.wish = wish;
  const parsed = parseWish(wish, Object.keys(store.snapshot.state?.clusters ?? {}), trans);
  const hosts = JSON.stringify(parsed.hosts);

  form.submit = async () => {
    const { hosts, problem } = parseWish(
      form.wish,
      Object.keys(store.snapshot.state?.clusters ?? {}),
      trans
    );
    if (hosts === null || problem) {
      setFault({ message: problem, why: '', do: '' });
      return false;
    }
    setStarting(true);
    setFault(null);
    try {
      const { backend, name, checked } = form.wish;
      const taken = await api.start({
        hosts,
        backend: backend || null,
        name: name.trim(),
        checked
      });
      form.wish = { ...form.wish, name: taken };
      return true;
    } catch (error) {
      setFault(asFault(error));
      return false;
    } finally {
      setStarting(false);
    }
  };

  // Which backend it will be: asked when the typing has settled, and only the last answer counts.
  React.useEffect(() => {
    const asked = JSON.parse(hosts) as Hosts | null;
    if (asked === null) {
      setFound({ choice: null, fault: null, asking: false });
      return undefined;
    }
    let here = true;
    setFound(before => ({ ...before, asking: true }));
    const timer = window.setTimeout(() => {
      api.choice(asked, wish.backend || null).then(
        choice => here && setFound({ choice, fault: null, asking: false }),
        error =>
          here &&
          setFound(before => ({
            // The other backends stay to be chosen from.
            choice: wish.backend ? before.choice : null,
            fault: asFault(error),
            asking: false
          }))
      );
    }, SETTLED);
    return () => {
      here = false;
      window.clearTimeout(timer);
    };
  }, [api, hosts, wish.backend]);

  const where = (value: Where, label: string, field: React.ReactNode): React.ReactElement => (
    <div className="mcl-Where">
      <label>
        <input
          type="radio"
          name="where"
          value={value}
          checked={wish.where === value}
          onChange={() => change({ where: value, backend: '' })}
        />
        {label}
      </label>
      {wish.where === value && <div className="mcl-Where-field">{field}</div>}
    </div>
  );
  const { choice } = found;
  return (
    <>
      <fieldset>
        <legend>{trans.__('Where')}</legend>
        {where(
          'here',
          trans.__('On this machine'),
          <label>
            {trans.__('Number of ranks')}
            <input
              className="jp-mod-styled mcl-Count"
              type="number"
              name="count"
              min={1}
              value={wish.count}
              onChange={event => change({ count: event.target.value })}
            />
          </label>
        )}
        {where(
          'file',
          trans.__('On the Macs of a hostfile'),
          <label>
            {trans.__('Path on the machine of the Jupyter server')}
            <input
              className="jp-mod-styled"
              type="text"
              name="path"
              placeholder="m3-ultra-jaccl.json"
              spellCheck={false}
              value={wish.path}
              onChange={event => change({ path: event.target.value })}
            />
          </label>
        )}
        {where(
          'list',
          trans.__('On these hosts'),
          <label>
            {trans.__('Names for ssh, one a line; rank 0 first')}
            <textarea
              className="jp-mod-styled"
              name="list"
              rows={4}
              spellCheck={false}
              value={wish.list}
              onChange={event => change({ list: event.target.value })}
            />
          </label>
        )}
      </fieldset>
      <label className="mcl-Field">
        {trans.__('Name')}
        <input
          className="jp-mod-styled"
          type="text"
          name="name"
          spellCheck={false}
          value={wish.name}
          onChange={event => change({ name: event.target.value })}
        />
      </label>
      <fieldset>
        <legend>{trans.__('Backend')}</legend>
        <label className="mcl-BackendRow">
          <input
            type="radio"
            name="backend"
            checked={!wish.backend}
            onChange={() => change({ backend: '' })}
          />
          <span>{trans.__('Automatic')}</span>
          <small role="status" data-testid="macluster-choice">
            {choice && !wish.backend && `${choice.backend}: ${choice.reason}`}
            {!choice && !found.fault && found.asking && trans.__('Looking at the hosts…')}
          </small>
        </label>
        {(choice?.backends ?? []).map(each => (
          <label
            key={each.name}
            className={`mcl-BackendRow ${each.fits ? '' : 'mcl-mod-unfit'}`}
          >
            <input
              type="radio"
              name="backend"
              checked={wish.backend === each.name}
              disabled={!each.fits}
              onChange={() => change({ backend: each.name })}
            />
            <span>{each.name}</span>
            <small>
              {each.fits ? each.why || trans.__('fits') : trans.__('does not fit: %1', each.why)}
            </small>
          </label>
        ))}
        {choice && (
          <p className="mcl-Faint">
            {trans._n('%1 rank', '%1 ranks', choice.size)}
            {choice.hosts.length > 0 && `: ${hostsText(choice.hosts)}`}
          </p>
        )}
        {found.fault && !fault && <FaultBox fault={found.fault} quiet />}
      </fieldset>
      <label className="mcl-Checked">
        <input
          type="checkbox"
          name="checked"
          checked={wish.checked}
          onChange={event => change({ checked: event.target.checked })}
        />
        <span>
          {trans.__('Check collectives')}
          <small>
            {trans.__('Ranks that call different ones get an error, not wrong numbers; slower.')}
          </small>
        </span>
      </label>
      {parsed.problem && !fault && <p className="mcl-Hint">{parsed.problem}</p>}
      <div aria-live="polite">
        {starting && <p className="mcl-Hint">{trans.__('Giving the order to start…')}</p>}
      </div>
      {fault && <FaultBox fault={fault} />}
    </>
  );
}

/** "localhost ×4" rather than the same name four times. */
function hostsText(hosts: string[]): string {
  const counts = new Map<string, number>();
  for (const host of hosts) {
    counts.set(host, (counts.get(host) ?? 0) + 1);
  }
  const names = [...counts].map(([host, count]) => (count > 1 ? `${host} ×${count}` : host));
  return names.length > 8 ? `${names.slice(0, 7).join(', ')}, … ${names.at(-1)}` : names.join(', ');
}
