// Tabs of the main area: a view, the logs or the stacks of one cluster.

import * as React from 'react';

import { asFault } from './api.js';
import { allowed } from './actions.js';
import { useActionState, useServices, useSnapshot, type TabArgs } from './context.js';
import { Button, FaultBox, LivePicture, Mark, stateWords, walkList } from './parts.js';
import { CommandIDs, sizeWords } from './sidebar.js';
import type { Trans } from './trans.js';
import type { Cluster, Fault, Log } from './types.js';

export function tabTitle({ kind, cluster, model }: TabArgs, trans: Trans): string {
  switch (kind) {
    case 'topology':
      return trans.__('Wiring of %1', cluster);
    case 'measurement':
      return trans.__('Measurements of %1', cluster);
    case 'shards':
      return trans.__('%1 on %2', model ?? '', cluster);
    case 'logs':
      return trans.__('Logs of %1', cluster);
    case 'stacks':
      return trans.__('Stacks of %1', cluster);
  }
}

export const tabId = ({ kind, cluster, model }: TabArgs): string =>
  `macluster-${kind}-${[cluster, ...(model ? [model] : [])].map(encodeURIComponent).join('-')}`;

export function Tab(props: { args: TabArgs; asked: number }): React.ReactElement {
  const { store, trans } = useServices();
  const snapshot = useSnapshot();
  const { args } = props;
  const cluster = store.cluster(args.cluster);
  const old = snapshot.state !== null && snapshot.link !== 'live';
  let body: React.ReactNode;
  if (!snapshot.state) {
    body = snapshot.problem ? (
      <FaultBox fault={snapshot.problem} />
    ) : (
      <p className="mcl-Hint">{trans.__('Connecting to the server…')}</p>
    );
  } else if (!cluster) {
    body = <Gone cluster={args.cluster} />;
  } else {
    body = <Body args={args} asked={props.asked} cluster={cluster} />;
  }
  return (
    <div className="mcl-Tab" data-testid={`macluster-tab-${args.kind}`}>
      <div className="mcl-Tab-head">
        <h2>{tabTitle(args, trans)}</h2>
        {cluster && (
          <span className="mcl-State" data-state={cluster.state}>
            <Mark state={cluster.state} />
            {stateWords(cluster.state, trans)}
          </span>
        )}
        {cluster && (
          <span className="mcl-Faint">
            {[sizeWords(cluster, trans), cluster.backend].filter(Boolean).join(' · ')}
          </span>
        )}
        <span role="status" className="mcl-Tab-stale">
          {old && trans.__('stale: the server is not heard')}
        </span>
      </div>
      {body}
    </div>
  );
}

function Gone({ cluster }: { cluster: string }): React.ReactElement {
  const { trans } = useServices();
  return (
    <div className="mcl-Box" role="status" data-testid="macluster-gone">
      <div className="mcl-Box-text">
        <strong>{trans.__('The cluster %1 is gone.', cluster)}</strong>
        <p>{trans.__('It was stopped, or its machine was started again.')}</p>
        <p>
          {trans.__('When a cluster with this name runs again, this tab shows it. Else close it.')}
        </p>
      </div>
    </div>
  );
}

function Body(props: { args: TabArgs; asked: number; cluster: Cluster }): React.ReactElement {
  const { args, cluster } = props;
  const model = args.model ?? null;
  switch (args.kind) {
    case 'logs':
      return <Logs args={args} asked={props.asked} />;
    case 'stacks':
      return <Stacks cluster={args.cluster} asked={props.asked} />;
    case 'measurement':
      return <Measurements cluster={cluster} />;
    default:
      return (
        <Picture
          cluster={args.cluster}
          kind={args.kind}
          model={args.kind === 'shards' ? model : null}
        />
      );
  }
}

function Picture(props: {
  cluster: string;
  kind: 'topology' | 'shards';
  model: string | null;
}): React.ReactElement {
  const { cluster, kind, model } = props;
  const view = React.useMemo(() => ({ cluster, kind, model }), [cluster, kind, model]);
  return (
    <div className="mcl-Tab-body">
      <LivePicture view={view} />
    </div>
  );
}

function Measurements({ cluster }: { cluster: Cluster }): React.ReactElement {
  const { trans, execute } = useServices();
  const { running, notices } = useActionState();
  const { name } = cluster;
  const notice = notices.get(name);
  const view = React.useMemo(
    () => ({ cluster: name, kind: 'measurement', model: null }) as const,
    [name]
  );
  return (
    <>
      <div className="mcl-Tab-tools">
        <Button
          label={trans.__('Measure now')}
          running={running.has(`measure ${name}`) && trans.__('Measuring…')}
          disabled={!allowed(cluster, 'measure')}
          title={
            allowed(cluster, 'measure')
              ? trans.__('Measure the links, on all ranks')
              : trans.__('Links can be measured while no cell runs')
          }
          onClick={() => execute(CommandIDs.measure, { cluster: name })}
        />
      </div>
      {notice?.action === 'measure' && notice.fault && <FaultBox fault={notice.fault} />}
      <div className="mcl-Tab-body">
        <LivePicture
          view={view}
          empty={<p className="mcl-Hint">{trans.__('Nothing has been measured yet.')}</p>}
        />
      </div>
    </>
  );
}

/** Asks the server when the tab opens and whenever `asked` changes. */
function useAsked<T>(
  ask: () => Promise<T>,
  asked: unknown
): { value: T | null; fault: Fault | null; running: boolean; at: Date | null; again(): void } {
  const [found, set] = React.useState<{
    value: T | null;
    fault: Fault | null;
    running: boolean;
    at: Date | null;
  }>({ value: null, fault: null, running: true, at: null });
  const turn = React.useRef(0);
  const again = (): void => {
    const mine = ++turn.current;
    set(before => ({ ...before, running: true }));
    ask().then(
      value => {
        if (mine === turn.current) {
          set({ value, fault: null, running: false, at: new Date() });
        }
      },
      error => {
        if (mine === turn.current) {
          // What was read before stays, beside the error.
          set(before => ({ ...before, fault: asFault(error), running: false }));
        }
      }
    );
  };
  React.useEffect(() => {
    again();
    return () => {
      turn.current += 1;
    };
  }, [asked]);
  return { ...found, again };
}

const clock = (at: Date | null): string =>
  at?.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' }) ?? '';

function Tools(props: {
  again: string;
  running: string;
  found: { running: boolean; at: Date | null; again(): void };
  text: string;
}): React.ReactElement {
  const { trans, copy } = useServices();
  const { found } = props;
  return (
    <div className="mcl-Tab-tools">
      <Button
        label={props.again}
        running={found.running && props.running}
        testid="macluster-refresh"
        onClick={found.again}
      />
      <Button label={trans.__('Copy')} disabled={!props.text} onClick={() => copy(props.text)} />
      {found.at && (
        <span className="mcl-Faint" role="status">
          {trans.__('as of %1', clock(found.at))}
        </span>
      )}
    </div>
  );
}

function Stacks(props: { cluster: string; asked: number }): React.ReactElement {
  const { trans, api } = useServices();
  const found = useAsked(() => api.stacks(props.cluster), props.asked);
  return (
    <>
      <Tools
        again={trans.__('Ask again')}
        running={trans.__('Asking all ranks…')}
        found={found}
        text={found.value ?? ''}
      />
      {found.fault && <FaultBox fault={found.fault} />}
      {found.value !== null && (
        <pre
          className="mcl-Text"
          tabIndex={0}
          role="region"
          aria-label={trans.__('Stacks of %1', props.cluster)}
          data-testid="macluster-stacks-text"
        >
          {found.value}
        </pre>
      )}
    </>
  );
}

function Logs(props: { args: TabArgs; asked: number }): React.ReactElement {
  const { trans, api } = useServices();
  const { cluster, log } = props.args;
  const found = useAsked<Log[]>(() => api.logs(cluster), props.asked);
  const [picked, pick] = React.useState(log ?? null);
  React.useEffect(() => {
    if (log) {
      pick(log);
    }
  }, [log, props.asked]);
  const node = React.useRef<HTMLPreElement>(null);
  const logs = found.value ?? [];
  const shown = logs.find(each => each.name === picked) ?? logs[0];
  const id = React.useId();
  // The end is what is looked for.
  React.useLayoutEffect(() => {
    node.current?.scrollTo(0, node.current.scrollHeight);
  }, [shown?.name, shown?.text]);
  return (
    <>
      <Tools
        again={trans.__('Read again')}
        running={trans.__('Reading…')}
        found={found}
        text={shown?.text ?? ''}
      />
      {found.fault && <FaultBox fault={found.fault} />}
      {found.value !== null && !logs.length && (
        <p className="mcl-Hint">{trans.__('No log has been written yet.')}</p>
      )}
      {shown && (
        <div className="mcl-Logs">
          <ul
            role="tablist"
            aria-orientation="vertical"
            aria-label={trans.__('Whose log')}
            onKeyDown={event => walkList(event, '[role="tab"]')}
          >
            {logs.map(each => (
              <li
                key={each.name}
                role="tab"
                aria-selected={each === shown}
                aria-controls={id}
                tabIndex={each === shown ? 0 : -1}
                onClick={() => pick(each.name)}
                onFocus={() => pick(each.name)}
              >
                {each.name}
              </li>
            ))}
          </ul>
          <pre
            ref={node}
            id={id}
            className="mcl-Text"
            tabIndex={0}
            role="tabpanel"
            aria-label={trans.__('Log of %1', shown.name)}
            data-testid="macluster-log-text"
          >
            {shown.text || trans.__('(nothing was written)')}
          </pre>
        </div>
      )}
    </>
  );
}

