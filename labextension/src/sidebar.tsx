// The sidebar: all clusters, and the chosen one in full.

import * as React from 'react';

import { allowed, failedStart, type Doing } from './actions.js';
import { useActionState, useServices, useSnapshot, type Services } from './context.js';
import { bytesText, durationText, percentText, ranksText, rateText } from './format.js';
import { memoryBar, type MemoryBar, type Part } from './memory.js';
import {
  Button,
  CloseButton,
  Elapsed,
  FaultBox,
  LivePicture,
  Mark,
  stateWords,
  walkList
} from './parts.js';
import { shardMap } from './shardmap.js';
import type { Snapshot } from './store.js';
import type { Trans } from './trans.js';
import type { Cluster, Model, Rank } from './types.js';

export const CommandIDs = {
  create: 'macluster:new',
  show: 'macluster:show-sidebar',
  reconnect: 'macluster:reconnect',
  stop: 'macluster:stop',
  restart: 'macluster:restart',
  interrupt: 'macluster:interrupt',
  abort: 'macluster:abort',
  dismiss: 'macluster:dismiss',
  measure: 'macluster:measure',
  insert: 'macluster:insert-connect',
  copyConnect: 'macluster:copy-connect',
  copyLine: 'macluster:copy-line',
  open: 'macluster:open',
  topology: 'macluster:open-topology',
  measurement: 'macluster:open-measurements',
  shards: 'macluster:open-shards',
  logs: 'macluster:open-logs',
  stacks: 'macluster:open-stacks'
} as const;

// -- the whole -------------------------------------------------------------------------------------

export function Sidebar(): React.ReactElement {
  const { trans, execute, leave } = useServices();
  const snapshot = useSnapshot();
  const { state, chosen } = snapshot;
  const names = Object.keys(state?.clusters ?? {}).sort();
  const cluster = chosen !== null ? state?.clusters[chosen] : undefined;
  const old = snapshot.link === 'stale' || snapshot.link === 'absent' || snapshot.link === 'refused';
  const panel = useKeptFocus(names.join('\n'));
  return (
    <div
      className="mcl-Panel"
      data-testid="macluster-panel"
      ref={panel}
      onKeyDown={event => {
        if (event.key === 'Escape') {
          leave();
        }
      }}
    >
      <div className="mcl-Header">
        <h2>{trans.__('Clusters')}</h2>
        <Button
          label={trans.__('New cluster…')}
          kind={state && !names.length ? 'primary' : undefined}
          testid="macluster-new"
          disabled={!state || old}
          onClick={() => execute(CommandIDs.create)}
        />
      </div>
      <LinkBox snapshot={snapshot} />
      <div className={`mcl-Scroll ${old ? 'mcl-mod-old' : ''}`}>
        {state && !names.length && <Empty />}
        {state && names.length > 0 && <ClusterList state={state.clusters} chosen={chosen} />}
        <Notices chosen={cluster ? chosen : null} names={names} />
        {cluster && <Chosen key={cluster.name} cluster={cluster} />}
      </div>
    </div>
  );
}

/** A focus whose button went away with its cluster goes to the list, not to nowhere. */
function useKeptFocus(names: string): React.RefObject<HTMLDivElement> {
  const panel = React.useRef<HTMLDivElement>(null);
  const inside = React.useRef(false);
  React.useEffect(() => {
    const look = (event: Event): void => {
      inside.current = panel.current?.contains(event.target as Node) ?? false;
    };
    document.addEventListener('focusin', look);
    document.addEventListener('pointerdown', look);
    return () => {
      document.removeEventListener('focusin', look);
      document.removeEventListener('pointerdown', look);
    };
  }, []);
  React.useLayoutEffect(() => {
    if (inside.current && document.activeElement === document.body) {
      const found =
        panel.current?.querySelector<HTMLElement>('[role="option"][aria-selected="true"]') ??
        panel.current?.querySelector<HTMLElement>('button');
      found?.focus();
    }
  }, [names]);
  return panel;
}

/** How it stands with the server, when it does not stand well. */
function LinkBox({ snapshot }: { snapshot: Snapshot }): React.ReactElement {
  const { trans, execute, store } = useServices();
  const again = (
    <Button
      label={trans.__('Try now')}
      testid="macluster-reconnect"
      onClick={() => execute(CommandIDs.reconnect)}
    />
  );
  let content: React.ReactNode = null;
  if (snapshot.problem) {
    content = (
      <FaultBox fault={snapshot.problem}>
        <p>{again}</p>
      </FaultBox>
    );
  } else if (snapshot.link === 'stale') {
    content = (
      <div className="mcl-Box mcl-mod-stale" data-testid="macluster-stale">
        <div className="mcl-Box-text">
          <strong>{trans.__('Stale: the server is not heard.')}</strong>
          <p>
            {trans.__('What stands below is old. Reconnecting…')}{' '}
            <Silence read={() => store.silence()} trans={trans} />
          </p>
          <p>{again}</p>
        </div>
      </div>
    );
  } else if (snapshot.link === 'connecting') {
    content = <p className="mcl-Hint">{trans.__('Connecting to the server…')}</p>;
  }
  return (
    <div role="status" className="mcl-Link">
      {content}
    </div>
  );
}

// Counts for the eye only: a screen reader would read each second aloud.
function Silence(props: { read(): number; trans: Trans }): React.ReactElement {
  const [seconds, set] = React.useState(props.read);
  React.useEffect(() => {
    const timer = window.setInterval(() => set(props.read()), 1000);
    return () => window.clearInterval(timer);
  }, [props.read]);
  return (
    <span aria-hidden="true">{props.trans.__('(last heard %1 ago)', durationText(seconds))}</span>
  );
}

function Empty(): React.ReactElement {
  const { trans } = useServices();
  return (
    <div className="mcl-Empty" data-testid="macluster-empty">
      <p>
        <strong>{trans.__('No cluster runs.')}</strong>
      </p>
      <p>
        {trans.__(
          'Start one here: a few ranks on this machine, or your Macs from a hostfile. Or in a notebook:'
        )}
      </p>
      <pre>
        %load_ext macluster{'\n'}
        %cluster start 4
      </pre>
      <p>{trans.__('Clusters show up here however they were started.')}</p>
    </div>
  );
}

/** What came of actions on clusters that are not there any more, such as "stopped". */
function Notices(props: { chosen: string | null; names: string[] }): React.ReactElement {
  const { notices } = useActionState();
  return (
    <div className="mcl-Notices">
      {[...notices.values()]
        .filter(each => each.cluster !== props.chosen)
        .map(each => (
          <NoticeBox key={each.cluster} cluster={each.cluster} named />
        ))}
    </div>
  );
}

const READ_AFTER = 15_000; // milliseconds

function NoticeBox(props: { cluster: string; named?: boolean }): React.ReactElement | null {
  const { actions } = useServices();
  const { notices } = useActionState();
  const notice = notices.get(props.cluster);
  const { cluster } = props;
  React.useEffect(() => {
    if (!notice || notice.fault) {
      return undefined; // an error stays until somebody has read it
    }
    const timer = window.setTimeout(() => actions.dismiss(cluster), READ_AFTER);
    return () => window.clearTimeout(timer);
  }, [actions, cluster, notice]);
  if (!notice) {
    return null;
  }
  const dismiss = (): void => actions.dismiss(cluster);
  const name = props.named ? `${props.cluster}: ` : '';
  if (notice.fault) {
    const fault = { ...notice.fault, message: name + notice.fault.message };
    return <FaultBox fault={fault} onDismiss={dismiss} />;
  }
  return (
    <div className="mcl-Box mcl-mod-done" role="status" data-testid="macluster-notice">
      <div className="mcl-Box-text">{name + notice.words}</div>
      <CloseButton onClick={dismiss} />
    </div>
  );
}

// -- the list of clusters --------------------------------------------------------------------------

function ClusterList(props: {
  state: Record<string, Cluster>;
  chosen: string | null;
}): React.ReactElement {
  const { trans, store } = useServices();
  const names = Object.keys(props.state).sort();
  const choose = React.useCallback((name: string) => store.choose(name), [store]);
  return (
    <ul
      className="mcl-List"
      role="listbox"
      aria-label={trans.__('Clusters')}
      data-testid="macluster-clusters"
      onKeyDown={event => walkList(event, '[role="option"]')}
    >
      {names.map(name => (
        <ClusterRow
          key={name}
          cluster={props.state[name]}
          chosen={name === props.chosen}
          choose={choose}
        />
      ))}
    </ul>
  );
}

export const sizeWords = (cluster: Cluster, trans: Trans): string =>
  trans._n('%1 rank', '%1 ranks', cluster.size);

const ClusterRow = React.memo(function ClusterRow(props: {
  cluster: Cluster;
  chosen: boolean;
  choose(name: string): void;
}): React.ReactElement {
  const { trans } = useServices();
  const { cluster } = props;
  const { name } = cluster;
  const under = [sizeWords(cluster, trans), cluster.backend].filter(Boolean).join(' · ');
  return (
    <li
      role="option"
      className="mcl-Cluster"
      aria-selected={props.chosen}
      tabIndex={props.chosen ? 0 : -1}
      title={name}
      data-cluster={name}
      data-testid="macluster-cluster"
      data-state={cluster.state}
      onClick={() => props.choose(name)}
      onKeyDown={event => {
        if (event.key === 'Enter' || event.key === ' ') {
          event.preventDefault();
          props.choose(name);
        }
      }}
    >
      <Mark state={cluster.state} />
      <span className="mcl-Cluster-name">{name}</span>
      <span className="mcl-Cluster-under">{under}</span>
      <span className="mcl-Cluster-state">{stateWords(cluster.state, trans)}</span>
    </li>
  );
});

// -- the chosen cluster ----------------------------------------------------------------------------

function Chosen({ cluster }: { cluster: Cluster }): React.ReactElement {
  const { trans } = useServices();
  const { name } = cluster;
  const view = React.useMemo(() => ({ cluster: name, kind: 'topology', model: null }) as const, [name]);
  const models = Object.entries(cluster.models ?? {});
  const ranks = Object.values(cluster.ranks ?? {}).sort((a, b) => a.rank - b.rank);
  return (
    <section className="mcl-Chosen" aria-label={trans.__('Cluster %1', name)} data-cluster={name}>
      <Headline cluster={cluster} />
      <ActionBar cluster={cluster} />
      <NoticeBox cluster={name} />
      <FailureBox cluster={cluster} />
      {!failedStart(cluster) && cluster.state !== 'starting' && (
        <Section
          id="wiring"
          title={trans.__('Wiring')}
          link={{ label: trans.__('Open'), id: CommandIDs.topology, args: { cluster: name } }}
        >
          <Wiring view={view} />
        </Section>
      )}
      {ranks.length > 0 && (
        <Section
          id="ranks"
          title={trans.__('Ranks')}
          more={busyWords(ranks, trans)}
          link={{ label: trans.__('Logs'), id: CommandIDs.logs, args: { cluster: name } }}
        >
          <Ranks cluster={name} ranks={ranks} />
        </Section>
      )}
      {models.length > 0 && (
        <Section id="models" title={trans.__('Models')}>
          <ul className="mcl-Models">
            {models.map(([variable, model]) => (
              <ModelItem key={variable} cluster={name} variable={variable} model={model} />
            ))}
          </ul>
        </Section>
      )}
      {allowed(cluster, 'insert') && (
        <Section id="connect" title={trans.__('Connect a notebook')}>
          <Connect cluster={name} />
        </Section>
      )}
    </section>
  );
}

function Headline({ cluster }: { cluster: Cluster }): React.ReactElement {
  const { trans } = useServices();
  const [shown, show] = React.useState(false);
  const id = React.useId();
  return (
    <div className="mcl-Headline">
      <h3 title={cluster.name} data-testid="macluster-name">
        {cluster.name}
      </h3>
      <p className="mcl-Headline-line">
        <span className="mcl-State" data-testid="macluster-state" data-state={cluster.state}>
          <Mark state={cluster.state} />
          {stateWords(cluster.state, trans)}
          {cluster.since != null && <Elapsed since={cluster.since} />}
        </span>
        <span>{sizeWords(cluster, trans)}</span>
        {cluster.backend && (
          <button
            type="button"
            className="mcl-Backend"
            title={cluster.reason}
            aria-expanded={shown}
            aria-controls={id}
            data-testid="macluster-backend"
            onClick={() => show(!shown)}
          >
            {cluster.backend}
            <span aria-hidden="true">{shown ? ' ▴' : ' ▾'}</span>
          </button>
        )}
      </p>
      <div id={id} hidden={!shown} className="mcl-Why">
        {cluster.reason && <p>{cluster.reason}</p>}
        {cluster.owner && (
          <p>{trans.__('Owner: %1', cluster.owner)}</p>
        )}
        <p>
          {cluster.checked
            ? trans.__('Collectives are checked before data moves.')
            : trans.__('Collectives are not checked.')}
        </p>
      </div>
      {cluster.words && (
        <p className="mcl-Words" data-testid="macluster-words">
          {cluster.words}
        </p>
      )}
      {cluster.serving && (
        <p className="mcl-Serving">
          {trans.__('Serving at')}{' '}
          {/^https?:\/\//.test(cluster.serving) ? (
            <a href={cluster.serving} target="_blank" rel="noopener noreferrer">
              {cluster.serving}
            </a>
          ) : (
            <code>{cluster.serving}</code>
          )}
        </p>
      )}
    </div>
  );
}

function ActionBar({ cluster }: { cluster: Cluster }): React.ReactElement {
  const { trans, execute } = useServices();
  const { running } = useActionState();
  const live = useSnapshot().link === 'live';
  const { name } = cluster;
  const button = (
    action: Doing,
    id: string,
    label: string,
    busy: string,
    title: string,
    kind?: 'danger'
  ): React.ReactElement => (
    <Button
      key={action}
      label={label}
      running={running.has(`${action} ${name}`) && busy}
      disabled={!live || !allowed(cluster, action)}
      title={title}
      kind={kind}
      testid={`macluster-${action}`}
      onClick={() => execute(id, { cluster: name })}
    />
  );
  const end = failedStart(cluster)
    ? button(
        'dismiss',
        CommandIDs.dismiss,
        trans.__('Dismiss'),
        trans.__('Dismissing…'),
        trans.__('Take the failed start away')
      )
    : button(
        'stop',
        CommandIDs.stop,
        trans.__('Stop'),
        trans.__('Stopping…'),
        trans.__('End all ranks; their variables are lost'),
        'danger'
      );
  return (
    <div className="mcl-Actions" role="group" aria-label={trans.__('Actions')}>
      {button(
        'interrupt',
        CommandIDs.interrupt,
        trans.__('Interrupt'),
        trans.__('Interrupting…'),
        trans.__('As Ctrl-C: all ranks stop, and keep their variables')
      )}
      {button(
        'abort',
        CommandIDs.abort,
        trans.__('Abort'),
        trans.__('Aborting…'),
        trans.__('Free ranks that hang in a collective, and form the world again')
      )}
      {button(
        'stacks',
        CommandIDs.stacks,
        trans.__('Stacks'),
        trans.__('Asking…'),
        trans.__('Where each rank stands; works while a cell runs')
      )}
      {button(
        'logs',
        CommandIDs.logs,
        trans.__('Logs'),
        trans.__('Reading…'),
        trans.__('The last lines of each rank and of the controller')
      )}
      {button(
        'measure',
        CommandIDs.measure,
        trans.__('Measure'),
        trans.__('Measuring…'),
        cluster.state === 'idle'
          ? trans.__('Measure the links, on all ranks')
          : trans.__('Links can be measured while no cell runs')
      )}
      {button(
        'restart',
        CommandIDs.restart,
        trans.__('Restart'),
        trans.__('Restarting…'),
        trans.__('Start all ranks anew; their variables are lost')
      )}
      {end}
    </div>
  );
}

// What was dismissed stays so while the page lives, also when another cluster was looked at.
const dismissed = new Set<string>();

function FailureBox({ cluster }: { cluster: Cluster }): React.ReactElement {
  const { trans } = useServices();
  const [, redraw] = React.useReducer((n: number) => n + 1, 0);
  const { failure, name } = cluster;
  const key = failure ? `${failure.at ?? failure.words} ${name}` : '';
  // The region stays, so that what appears in it is said.
  return (
    <div role="alert">
      {failure && !dismissed.has(key) && (
        <div className="mcl-Box mcl-mod-error" data-testid="macluster-failure">
          <div className="mcl-Box-text">
            <strong>{trans.__('Last failure')}</strong>
            {failure.at != null && (
              <span className="mcl-Faint" aria-hidden="true">
                {' '}
                <Elapsed since={failure.at} /> {trans.__('ago')}
              </span>
            )}
            <pre tabIndex={0} role="group" aria-label={trans.__('Failure of %1', name)}>
              {failure.words}
            </pre>
          </div>
          <CloseButton
            onClick={() => {
              dismissed.add(key);
              redraw();
            }}
          />
        </div>
      )}
    </div>
  );
}

// Sections that were closed stay closed when another cluster is chosen.
const closed = new Set<string>();

function Section(props: {
  id: string;
  title: string;
  more?: string;
  link?: { label: string; id: string; args: object };
  children: React.ReactNode;
}): React.ReactElement {
  const { execute } = useServices();
  const [open, setOpen] = React.useState(!closed.has(props.id));
  const id = React.useId();
  return (
    <div className="mcl-Section" data-section={props.id}>
      <div className="mcl-Section-head">
        <h4>
          <button
            type="button"
            aria-expanded={open}
            aria-controls={id}
            onClick={() => {
              if (open) {
                closed.add(props.id);
              } else {
                closed.delete(props.id);
              }
              setOpen(!open);
            }}
          >
            <svg viewBox="0 0 12 12" aria-hidden="true">
              <path d={open ? 'M2.5 4.5L6 8l3.5-3.5' : 'M4.5 2.5L8 6 4.5 9.5'} />
            </svg>
            {props.title}
          </button>
        </h4>
        {props.more && <span className="mcl-Faint">{props.more}</span>}
        {props.link && (
          <button
            type="button"
            className="mcl-LinkButton"
            aria-label={`${props.title}: ${props.link.label}`}
            onClick={() => props.link && execute(props.link.id, props.link.args)}
          >
            {props.link.label}
          </button>
        )}
      </div>
      <div id={id} hidden={!open} className="mcl-Section-body">
        {open && props.children}
      </div>
    </div>
  );
}

function Wiring(props: { view: { cluster: string; kind: 'topology'; model: null } }): React.ReactElement {
  const { open, trans } = useServices();
  const go = (event: React.SyntheticEvent): void => {
    event.preventDefault();
    event.stopPropagation();
    open({ kind: 'topology', cluster: props.view.cluster });
  };
  return (
    <div
      className="mcl-Wiring"
      title={trans.__('Click for the figures of each link')}
      data-testid="macluster-wiring"
      onClickCapture={go}
      onKeyDownCapture={event => {
        if (event.key === 'Enter' || event.key === ' ') {
          go(event);
        }
      }}
    >
      <LivePicture view={props.view} narrow />
    </div>
  );
}

// -- ranks -----------------------------------------------------------------------------------------

function busyWords(ranks: Rank[], trans: Trans): string {
  const of = (...states: string[]): number[] =>
    ranks.filter(rank => states.includes(rank.state)).map(rank => rank.rank);
  const dead = of('dead');
  const silent = of('silent');
  const busy = of('busy');
  const found = [];
  if (dead.length) {
    found.push(trans.__('dead: %1', ranksText(dead)));
  }
  if (silent.length) {
    found.push(trans.__('silent: %1', ranksText(silent)));
  }
  if (busy.length) {
    found.push(
      busy.length === ranks.length ? trans.__('all busy') : trans.__('busy: %1', ranksText(busy))
    );
  }
  return found.join(' · ');
}

// More than these scroll by themselves, so that what is below them stays in reach.
const MANY = 12;

function Ranks(props: { cluster: string; ranks: Rank[] }): React.ReactElement {
  const { trans, open } = useServices();
  const { cluster } = props;
  const show = React.useCallback(
    (rank: number) => open({ kind: 'logs', cluster, log: `rank ${rank}` }),
    [open, cluster]
  );
  const withMemory = props.ranks.some(rank => rank.memory?.total != null);
  return (
    <>
      <ul
        className={props.ranks.length > MANY ? 'mcl-Ranks mcl-mod-many' : 'mcl-Ranks'}
        role="list"
        aria-label={trans.__('Ranks')}
        data-testid="macluster-ranks"
        onKeyDown={event => walkList(event, '.mcl-Rank')}
      >
        {props.ranks.map((rank, index) => (
          <RankRow key={rank.rank} cluster={cluster} rank={rank} first={index === 0} show={show} />
        ))}
      </ul>
      {withMemory && (
        <p className="mcl-Key" aria-hidden="true">
          <i className="mcl-Memory-arrays" /> {trans.__('arrays')}
          <i className="mcl-Memory-process" /> {trans.__('process')}
          <i className="mcl-Memory-used" /> {trans.__('others on the host')}
        </p>
      )}
    </>
  );
}

const RankRow = React.memo(function RankRow(props: {
  cluster: string;
  rank: Rank;
  first: boolean;
  show(rank: number): void;
}): React.ReactElement {
  const { trans } = useServices();
  const { rank } = props;
  const bar = memoryBar(rank.memory, trans);
  const figures = [
    rank.cpu != null && trans.__('CPU %1', percentText(rank.cpu)),
    rank.gpu != null && trans.__('GPU %1', percentText(rank.gpu)),
    rank.collectives?.rate != null &&
      rank.collectives.rate >= 500 &&
      rateText(rank.collectives.rate),
    rank.tokens != null && rank.tokens > 0 && trans.__('%1 tok/s', rank.tokens.toFixed(1))
  ].filter(Boolean) as string[];
  return (
    <li
      className="mcl-Rank"
      tabIndex={props.first ? 0 : -1}
      data-cluster={props.cluster}
      data-rank={rank.rank}
      data-state={rank.state}
      data-testid="macluster-rank"
      onPointerEnter={event => {
        // Made when somebody points at it, not for 64 rows at every change.
        event.currentTarget.title = rankTitle(rank, trans);
      }}
      onDoubleClick={() => props.show(rank.rank)}
      onKeyDown={event => {
        if (event.key === 'Enter') {
          event.preventDefault();
          props.show(rank.rank);
        }
      }}
    >
      <div className="mcl-Rank-line">
        <Mark state={rank.state} />
        <span className="mcl-Rank-number">
          <span className="mcl-Hidden">{trans.__('rank')} </span>
          {rank.rank}
        </span>
        <span className="mcl-Rank-host">{rank.host}</span>
        <span className="mcl-Rank-state">
          {stateWords(rank.state, trans)}
          {rank.since != null && (
            <>
              {' '}
              <Elapsed since={rank.since} />
            </>
          )}
          {rank.since == null && rank.state === 'silent' && rank.heard != null && (
            <>
              {' '}
              <Elapsed since={rank.heard} />
            </>
          )}
        </span>
      </div>
      {bar && rank.state !== 'dead' && <Bar bar={bar} />}
      {rank.doing && <Line words={rank.doing} />}
      {figures.length > 0 && rank.state !== 'dead' && (
        <Words className="mcl-Rank-figures" words={figures} />
      )}
    </li>
  );
});

// Side by side, and whole when they need a second line.
function Words(props: { className: string; words: string[] }): React.ReactElement {
  return (
    <div className={`mcl-Inline ${props.className}`}>
      {props.words.map((each, index) => (
        <span key={index}>{each}</span>
      ))}
    </div>
  );
}

// "line 3: `loss = step(batch)`": the code as code.
function Line({ words }: { words: string }): React.ReactElement {
  const [, before, code] = /^([^`]*)`(.*)`$/s.exec(words) ?? [null, words, ''];
  return (
    <div className="mcl-Rank-doing">
      {before}
      {code && <code>{code}</code>}
    </div>
  );
}

function partWords(what: Part, trans: Trans): string {
  switch (what) {
    case 'arrays':
      return trans.__('arrays of MLX');
    case 'peak':
      return trans.__('peak of MLX');
    case 'cache':
      return trans.__('cache of MLX');
    case 'limit':
      return trans.__('limit of MLX');
    case 'process':
      return trans.__('process');
    case 'used':
      return trans.__('used on the host');
    case 'wired':
      return trans.__('wired on the host');
    case 'total':
      return trans.__('memory of the host');
  }
}

function Bar({ bar }: { bar: MemoryBar }): React.ReactElement {
  const { trans } = useServices();
  const label = trans.__(
    'Memory: %1',
    bar.rows
      .filter(([what]) => ['arrays', 'process', 'used', 'total'].includes(what))
      .map(([what, bytes]) => `${partWords(what, trans)} ${bytesText(bytes)}`)
      .join(', ')
  );
  // The smallest part can be seen, and what is nothing cannot.
  const width = (part: number): React.CSSProperties => ({
    width: `${(100 * part).toFixed(2)}%`,
    minWidth: part > 0 ? 2 : 0
  });
  return (
    <div className="mcl-Memory">
      <div className="mcl-Memory-bar" role="img" aria-label={label}>
        <i className="mcl-Memory-arrays" style={width(bar.arrays)} />
        <i className="mcl-Memory-process" style={width(bar.process)} />
        <i className="mcl-Memory-used" style={width(bar.used)} />
      </div>
      <span className="mcl-Memory-short" aria-hidden="true">
        {bar.short}
      </span>
    </div>
  );
}

function rankTitle(rank: Rank, trans: Trans): string {
  const lines = [trans.__('rank %1 on %2', rank.rank, rank.host)];
  if (rank.pid != null) {
    lines[0] += `, ${trans.__('process %1', rank.pid)}`;
  }
  if (rank.doing) {
    lines.push(rank.doing);
  }
  for (const [what, bytes] of memoryBar(rank.memory, trans)?.rows ?? []) {
    lines.push(`${partWords(what, trans)}: ${bytesText(bytes)}`);
  }
  if (rank.host_cpu != null) {
    lines.push(trans.__('CPU of the host: %1', percentText(rank.host_cpu)));
  }
  const { count, bytes } = rank.collectives ?? {};
  if (count) {
    lines.push(
      trans.__('collectives: %1, %2', count.toLocaleString('en-US'), bytesText(bytes ?? 0))
    );
  }
  return lines.join('\n');
}

// -- models ----------------------------------------------------------------------------------------

const ModelItem = React.memo(function ModelItem(props: {
  cluster: string;
  variable: string;
  model: Model;
}): React.ReactElement {
  const { trans, execute } = useServices();
  const { model, variable } = props;
  const map = React.useMemo(() => shardMap(model, trans), [model, trans]);
  const words = [
    trans.__('%1 over %2', model.strategy, trans._n('%1 rank', '%1 ranks', map.slices.length)),
    model.layers ? trans._n('%1 layer', '%1 layers', model.layers) : '',
    map.bytes != null ? bytesText(map.bytes) : ''
  ].filter(Boolean);
  return (
    <li className="mcl-Model" data-testid="macluster-model">
      <div className="mcl-Model-line">
        <code>{variable}</code>
        <span className="mcl-Model-source" title={model.source}>
          {model.source}
        </span>
        <button
          type="button"
          className="mcl-LinkButton"
          aria-label={trans.__('Sharding of %1', variable)}
          data-testid="macluster-sharding"
          onClick={() => execute(CommandIDs.shards, { cluster: props.cluster, model: variable })}
        >
          {trans.__('Sharding')}
        </button>
      </div>
      <Words className="mcl-Faint" words={words} />
      <svg className="mcl-Shards" role="img" aria-label={map.label}>
        <title>{map.label}</title>
        {map.slices.map(slice => {
          const box = {
            x: `${100 * slice.x}%`,
            y: `${100 * slice.y}%`,
            width: `${100 * slice.w}%`,
            height: `${100 * slice.h}%`
          };
          const room = map.kind === 'columns' ? slice.w > 0.07 : slice.h > 0.2;
          return (
            <g key={slice.rank}>
              <rect {...box} className={`mcl-Slice mcl-mod-${slice.rank % 2 ? 'odd' : 'even'}`}>
                <title>{slice.words}</title>
              </rect>
              {room && (
                <text
                  x={`${100 * (slice.x + slice.w / 2)}%`}
                  y={`${100 * (slice.y + slice.h / 2)}%`}
                >
                  {slice.rank}
                </text>
              )}
            </g>
          );
        })}
      </svg>
    </li>
  );
});

// -- connect ---------------------------------------------------------------------------------------

const FAR = 5; // pixels: less is a click

// Listens on the whole page: a quick pointer leaves the element with its first move.
function whenDragged(x: number, y: number, begin: (x: number, y: number) => void): void {
  const listening = new AbortController();
  const options = { signal: listening.signal, capture: true };
  document.addEventListener(
    'pointermove',
    event => {
      if (Math.hypot(event.clientX - x, event.clientY - y) > FAR) {
        listening.abort();
        begin(event.clientX, event.clientY);
      }
    },
    options
  );
  document.addEventListener('pointerup', () => listening.abort(), options);
  document.addEventListener('pointercancel', () => listening.abort(), options);
}

function Connect({ cluster }: { cluster: string }): React.ReactElement {
  const { trans, execute, api, startDrag }: Services = useServices();
  const { running } = useActionState();
  const live = useSnapshot().link === 'live';
  const [code, setCode] = React.useState('');
  React.useEffect(() => {
    let here = true;
    void api.connect(cluster).then(
      found => {
        if (here) {
          setCode(found);
        }
      },
      () => undefined // said when somebody asks for the code
    );
    return () => {
      here = false;
    };
  }, [api, cluster]);
  return (
    <div className="mcl-Connect">
      <pre
        className="mcl-Code"
        title={trans.__('Drag into a notebook')}
        data-testid="macluster-code"
        onPointerDown={event => {
          if (event.button === 0 && code) {
            event.preventDefault();
            whenDragged(event.clientX, event.clientY, (x, y) => startDrag(code, x, y));
          }
        }}
      >
        {code || trans.__('…')}
      </pre>
      <div className="mcl-Actions">
        <Button
          label={trans.__('Insert')}
          running={running.has(`insert ${cluster}`) && trans.__('Inserting…')}
          disabled={!live}
          title={trans.__('As a cell of the notebook in front')}
          testid="macluster-insert"
          onClick={() => execute(CommandIDs.insert, { cluster })}
        />
        <Button
          label={trans.__('Copy')}
          disabled={!live}
          testid="macluster-copy"
          onClick={() => execute(CommandIDs.copyConnect, { cluster })}
        />
        <span className="mcl-Faint">{trans.__('or drag it into a notebook')}</span>
      </div>
    </div>
  );
}
