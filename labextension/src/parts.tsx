// Small parts that the sidebar, the tabs and the dialogs share.

import * as React from 'react';

import { compact, type Scene } from './compact.js';
import { ViewerContext, useServices } from './context.js';
import { durationText } from './format.js';
import type { Trans } from './trans.js';
import type { ClusterState, Fault, RankState, Traits, View } from './types.js';
import { LiveView, type ViewState } from './views.js';

type Any = ClusterState | RankState;

export function stateWords(state: Any, trans: Trans): string {
  switch (state) {
    case 'starting':
      return trans.__('starting');
    case 'idle':
      return trans.__('idle');
    case 'busy':
      return trans.__('busy');
    case 'serving':
      return trans.__('serving');
    case 'repairing':
      return trans.__('repairing');
    case 'stopping':
      return trans.__('stopping');
    case 'broken':
      return trans.__('broken');
    case 'lost':
      return trans.__('lost');
    case 'dead':
      return trans.__('dead');
    case 'silent':
      return trans.__('silent');
    default:
      return String(state); // of a newer server
  }
}

// A shape of its own for each state: colours alone are not seen by everybody.
const SHAPES: Record<Any, React.ReactNode> = {
  idle: <circle cx="6" cy="6" r="3.6" className="mcl-fill" />,
  busy: <path d="M3 1.8L10 6 3 10.2z" className="mcl-fill" />,
  serving: (
    <>
      <circle cx="6" cy="6" r="1.9" className="mcl-fill" />
      <circle cx="6" cy="6" r="4.4" className="mcl-line" />
    </>
  ),
  starting: <path d="M6 1.6a4.4 4.4 0 1 1-4.4 4.4" className="mcl-line" />,
  stopping: <rect x="2.4" y="2.4" width="7.2" height="7.2" rx="1" className="mcl-line" />,
  repairing: <path d="M6 1.4L10.6 6 6 10.6 1.4 6z" className="mcl-line" />,
  broken: <path d="M2.4 2.4l7.2 7.2M9.6 2.4L2.4 9.6" className="mcl-line" />,
  dead: <path d="M2.4 2.4l7.2 7.2M9.6 2.4L2.4 9.6" className="mcl-line" />,
  lost: <circle cx="6" cy="6" r="4.2" className="mcl-line mcl-dashed" />,
  silent: <circle cx="6" cy="6" r="4.2" className="mcl-line mcl-dashed" />
};

export function Mark({ state }: { state: Any }): React.ReactElement {
  return (
    <svg className={`mcl-Mark mcl-is-${state}`} viewBox="0 0 12 12" aria-hidden="true">
      {SHAPES[state] ?? SHAPES.lost}
    </svg>
  );
}

// One timer for all that counts seconds, and none while nothing does.
const counting = new Set<() => void>();
let timer: number | undefined;

function count(tick: () => void): () => void {
  counting.add(tick);
  timer ??= window.setInterval(() => {
    if (document.visibilityState === 'visible') {
      counting.forEach(each => each());
    }
  }, 1000);
  return () => {
    counting.delete(tick);
    if (!counting.size) {
      window.clearInterval(timer);
      timer = undefined;
    }
  };
}

/** "12 s" since a time of the server, counted on the page without its messages. */
export const Elapsed = React.memo(function Elapsed({ since }: { since: number }) {
  const { store } = useServices();
  const viewer = React.useContext(ViewerContext);
  const node = React.useRef<HTMLTimeElement>(null);
  React.useLayoutEffect(() => {
    let shown = '';
    const tick = (): void => {
      const words = durationText(store.time() - since);
      if (node.current && words !== shown) {
        node.current.textContent = shown = words;
      }
    };
    tick();
    return count(() => {
      if (viewer.visible) {
        tick();
      }
    });
  }, [store, since, viewer]);
  return <time className="mcl-Elapsed" ref={node} />;
});

/** What went wrong, why, and what to do. */
export function FaultBox(props: {
  fault: Fault;
  /** Said when there is time for it: it may change with the next key. */
  quiet?: boolean;
  onDismiss?: () => void;
  children?: React.ReactNode;
}): React.ReactElement {
  const { trans } = useServices();
  const { fault } = props;
  return (
    <div
      className="mcl-Box mcl-mod-error"
      role={props.quiet ? 'status' : 'alert'}
      data-testid="macluster-error"
    >
      <div className="mcl-Box-text">
        <strong>{fault.message}</strong>
        {fault.why && <p>{fault.why}</p>}
        {fault.do && (
          <p>
            <span className="mcl-Box-do">{trans.__('What to do:')}</span> {fault.do}
          </p>
        )}
        {props.children}
      </div>
      {props.onDismiss && <CloseButton onClick={props.onDismiss} />}
    </div>
  );
}

export function CloseButton({ onClick }: { onClick: () => void }): React.ReactElement {
  const { trans } = useServices();
  const words = trans.__('Dismiss');
  return (
    <button type="button" className="mcl-Close" aria-label={words} title={words} onClick={onClick}>
      <svg viewBox="0 0 12 12" aria-hidden="true">
        <path d="M2.5 2.5l7 7M9.5 2.5l-7 7" />
      </svg>
    </button>
  );
}

export interface ButtonProps {
  label: string;
  /** Said instead of the label while it runs. */
  running?: string | false;
  disabled?: boolean;
  title?: string;
  kind?: 'primary' | 'danger' | 'link';
  testid?: string;
  icon?: React.ReactNode;
  onClick(): void;
}

/** A button that keeps the focus while it runs or cannot be used. */
export function Button(props: ButtonProps): React.ReactElement {
  const off = props.disabled || Boolean(props.running);
  return (
    <button
      type="button"
      className={`mcl-Button ${props.kind ? `mcl-mod-${props.kind}` : ''}`}
      aria-disabled={off || undefined}
      aria-busy={props.running ? true : undefined}
      title={props.title}
      data-testid={props.testid}
      onClick={() => {
        if (!off) {
          props.onClick();
        }
      }}
    >
      {props.running ? <span className="mcl-Spinner" aria-hidden="true" /> : props.icon}
      {props.running || props.label}
    </button>
  );
}

/** Arrow keys between the items of a list, of which one at a time is reached with Tab. */
export function walkList(event: React.KeyboardEvent<HTMLElement>, selector: string): void {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  const items = [...event.currentTarget.querySelectorAll<HTMLElement>(selector)];
  const here = items.findIndex(item => item.contains(document.activeElement));
  const next = {
    ArrowDown: here + 1,
    ArrowUp: here - 1,
    Home: 0,
    End: items.length - 1
  }[event.key];
  if (next === undefined || !items.length || here < 0) {
    return;
  }
  event.preventDefault();
  event.stopPropagation();
  const target = items[Math.max(0, Math.min(items.length - 1, next))];
  for (const item of items) {
    item.tabIndex = item === target ? 0 : -1;
  }
  target.focus();
  target.scrollIntoView({ block: 'nearest' });
}

/** One of the notebook's views, kept up to date. */
export function LivePicture(props: {
  view: View;
  /** For the sidebar: only what can be read there. */
  narrow?: boolean;
  empty?: React.ReactNode;
}): React.ReactElement {
  const { store, trans } = useServices();
  const viewer = React.useContext(ViewerContext);
  const node = React.useRef<HTMLDivElement>(null);
  const [state, setState] = React.useState<ViewState>('loading');
  const { cluster, kind, model } = props.view;
  const narrow = props.narrow ?? false;
  React.useEffect(() => {
    const el = node.current as HTMLDivElement;
    const live = new LiveView(el, kind, setState);
    setState('loading');
    const fit = (traits: Traits): Traits => {
      if (!narrow || !traits.scene) {
        return traits;
      }
      const { scene, letters } = compact(traits.scene as Scene);
      el.style.setProperty('--mcl-letters', `${letters.toFixed(1)}px`);
      return { ...traits, scene };
    };
    const stop = store.watch({ cluster, kind, model }, viewer, traits => live.update(fit(traits)));
    return () => {
      stop();
      live.dispose();
    };
  }, [store, viewer, cluster, kind, model, narrow]);
  const error = typeof state === 'object' ? state.error : '';
  return (
    <>
      <div ref={node} className={`mcl-Picture mcl-mod-${kind}`} />
      {state === 'loading' && <p className="mcl-Hint">{trans.__('Waiting for the first picture…')}</p>}
      {state === 'empty' && props.empty}
      {error && (
        <p className="mcl-Hint" role="status">
          {error}
        </p>
      )}
    </>
  );
}
