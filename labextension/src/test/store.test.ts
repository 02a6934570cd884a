import assert from 'node:assert/strict';
import { test } from 'node:test';

import { STALE_AFTER, Store, type Page, type Problem, type SocketEvents } from '../store.js';
import type { Want } from '../types.js';

/** A page with a clock that is turned by hand, and sockets that a test opens and closes. */
class FakePage implements Page {
  time = 1000;
  asleep = false;
  problem: Problem | null = null;
  sockets: FakeSocket[] = [];
  private _timers: { at: number; call: () => void }[] = [];

  connect(events: SocketEvents): FakeSocket {
    const socket = new FakeSocket(events);
    this.sockets.push(socket);
    return socket;
  }
  now(): number {
    return this.time;
  }
  after(seconds: number, call: () => void): () => void {
    const timer = { at: this.time + seconds, call };
    this._timers.push(timer);
    return () => {
      this._timers = this._timers.filter(each => each !== timer);
    };
  }
  hidden(): boolean {
    return this.asleep;
  }
  random(): number {
    return 0.5;
  }
  diagnose(): Promise<Problem | null> {
    return Promise.resolve(this.problem);
  }

  /** Let time go by; what is due is done in order. */
  pass(seconds: number): void {
    const end = this.time + seconds;
    for (;;) {
      const due = this._timers.filter(each => each.at <= end).sort((a, b) => a.at - b.at)[0];
      if (!due) {
        break;
      }
      this._timers = this._timers.filter(each => each !== due);
      this.time = Math.max(this.time, due.at);
      due.call();
    }
    this.time = end;
  }
  /** A laptop sleeps: time goes by and no timer runs. */
  sleep(seconds: number): void {
    this.time += seconds;
  }
  get socket(): FakeSocket {
    return this.sockets[this.sockets.length - 1];
  }
}

class FakeSocket {
  sent: Want[] = [];
  closed = false;
  constructor(readonly events: SocketEvents) {}
  send(text: string): void {
    this.sent.push(JSON.parse(text) as Want);
  }
  close(): void {
    this.closed = true;
  }
  say(message: object): void {
    this.events.message(JSON.stringify(message));
  }
}

const rank = (cpu: number): object => ({ rank: 0, cpu });
const stateOf = (...names: string[]): object => ({
  default_name: 'cluster',
  clusters: Object.fromEntries(
    names.map(name => [name, { name, state: 'idle', ranks: { 0: rank(1), 1: rank(2) } }])
  )
});

/** A store that is connected and has heard the state. */
function connected(...names: string[]): { page: FakePage; store: Store } {
  const page = new FakePage();
  const store = new Store(page);
  store.start();
  page.socket.events.open();
  page.socket.say({ now: 5000, state: stateOf(...names) });
  return { page, store };
}

const settle = (): Promise<void> => new Promise(done => setImmediate(done));

test('the state comes, and patches change it', () => {
  const { page, store } = connected('demo');
  assert.equal(store.snapshot.link, 'live');
  assert.equal(store.snapshot.chosen, 'demo');
  const before = store.cluster('demo');
  page.socket.say({ now: 5001, patch: { clusters: { demo: { ranks: { 0: { cpu: 50 } } } } } });
  const after = store.cluster('demo');
  assert.equal(after?.ranks[0].cpu, 50);
  assert.equal(after?.ranks[1], before?.ranks[1]);
});

test('a full state after a reconnect keeps the objects that are as they were', () => {
  const { page, store } = connected('demo', 'other');
  const before = store.cluster('demo');
  page.socket.say({ now: 5002, state: stateOf('demo') });
  assert.equal(store.cluster('demo'), before);
  assert.equal(store.cluster('other'), null);
});

test('a message that is not understood is passed over', () => {
  const { page, store } = connected('demo');
  page.socket.events.message('{');
  assert.equal(store.snapshot.link, 'live');
});

test('a connection that ends is stale at once, and is made again later and later', async () => {
  const { page, store } = connected('demo');
  page.socket.events.close();
  assert.equal(store.snapshot.link, 'stale');
  await settle();
  const gaps: number[] = [];
  for (let turn = 0; turn < 7; turn++) {
    const begun = page.time;
    const count = page.sockets.length;
    while (page.sockets.length === count) {
      page.pass(0.25);
    }
    gaps.push(page.time - begun);
    page.socket.events.close();
    await settle();
  }
  assert.deepEqual(gaps, [0.5, 1, 2, 4, 8, 15, 15]);
  // What was known is still shown.
  assert.ok(store.cluster('demo'));
  page.pass(15);
  page.socket.events.open();
  page.socket.say({ now: 6000, state: stateOf('demo') });
  assert.equal(store.snapshot.link, 'live');
});

test('twelve seconds of silence are stale, and the connection is made anew', () => {
  const { page, store } = connected('demo');
  const first = page.socket;
  page.pass(STALE_AFTER - 1);
  assert.equal(store.snapshot.link, 'live');
  page.pass(4);
  assert.equal(store.snapshot.link, 'stale');
  assert.ok(first.closed);
  assert.equal(page.sockets.length, 2);
  // The old one has nothing to say any more.
  first.say({ now: 1, state: stateOf('ghost') });
  assert.equal(store.cluster('ghost'), null);
});

test('"alive" is enough not to be stale', () => {
  const { page, store } = connected('demo');
  for (let turn = 0; turn < 10; turn++) {
    page.pass(5);
    page.socket.say({ now: 5000 + 5 * turn, alive: true });
  }
  assert.equal(store.snapshot.link, 'live');
  assert.equal(page.sockets.length, 1);
});

test('a socket that never opens is given up', () => {
  const page = new FakePage();
  const store = new Store(page);
  store.start();
  page.pass(STALE_AFTER + 4);
  assert.equal(page.sockets.length, 2);
  assert.ok(page.sockets[0].closed);
  assert.equal(store.snapshot.link, 'connecting');
});

test('a laptop that slept comes back at once, without waiting for its turn', async () => {
  const { page, store } = connected('demo');
  page.socket.events.close();
  await settle();
  for (let turn = 0; turn < 6; turn++) {
    page.pass(20);
    page.socket.events.close();
    await settle();
  }
  const count = page.sockets.length;
  page.sleep(3600);
  page.pass(0);
  assert.equal(page.sockets.length, count + 1);
  assert.equal(store.snapshot.link, 'stale');
  // And begins again with short waits.
  page.socket.events.close();
  page.pass(0.5);
  assert.equal(page.sockets.length, count + 2);
});

test('a connection that slept through with the laptop is made anew', () => {
  const { page, store } = connected('demo');
  page.sleep(600);
  store.wake();
  assert.equal(store.snapshot.link, 'stale');
  assert.equal(page.sockets.length, 2);
});

test('time is the server\'s, and stands still while nothing is heard', () => {
  const { page, store } = connected('demo');
  assert.equal(store.time(), 5000);
  page.pass(3);
  assert.equal(store.time(), 5003);
  // A message that was long on its way does not set the clock back.
  page.socket.say({ now: 5002.5, alive: true });
  assert.equal(store.time(), 5003);
  // A server whose clock was set does.
  page.socket.say({ now: 9000, alive: true });
  assert.equal(store.time(), 9000);
  page.socket.events.close();
  page.pass(100);
  assert.equal(store.time(), 9000);
  assert.equal(store.silence(), 100);
});

test('the server is told what is looked at, once, and only when it changes', () => {
  const { page, store } = connected('demo');
  page.pass(0);
  assert.deepEqual(page.socket.sent.at(-1), {
    visible: false,
    chosen: null,
    period: 2,
    views: []
  });
  const viewer = { visible: true };
  store.look(viewer);
  store.period = 0.5;
  page.pass(0);
  assert.deepEqual(page.socket.sent.at(-1), {
    visible: true,
    chosen: 'demo',
    period: 0.5,
    views: []
  });
  const count = page.socket.sent.length;
  store.tell();
  page.pass(0);
  assert.equal(page.socket.sent.length, count);
  page.asleep = true;
  store.wake();
  page.pass(0);
  assert.equal(page.socket.sent.at(-1)?.visible, false);
});

test('the status bar alone is content with a slow pace', () => {
  const { page, store } = connected('demo');
  store.look({ visible: true, slow: true });
  assert.deepEqual(store.want(), { visible: true, chosen: null, period: 2, views: [] });
  const leave = store.look({ visible: true });
  assert.equal(store.want().period, 0.5);
  leave();
  assert.equal(store.want().period, 2);
  page.asleep = true;
  assert.equal(store.want().visible, false);
});

test('a view is asked for while somebody sees it, and once for two who do', () => {
  const { page, store } = connected('demo');
  const view = { cluster: 'demo', kind: 'topology', model: null } as const;
  const [one, two] = [{ visible: true }, { visible: false }];
  const heard: unknown[] = [];
  const leave = store.watch(view, one, traits => heard.push(traits));
  store.watch(view, two, () => undefined);
  page.pass(0);
  assert.deepEqual(page.socket.sent.at(-1)?.views, [view]);
  page.socket.say({ now: 5001, view, traits: { scene: 1, status: '' } });
  page.socket.say({ now: 5002, view, traits: { scene: 2 } });
  assert.deepEqual(heard, [{ scene: 1, status: '' }, { scene: 2 }]);
  // Who comes later gets all that is known.
  const late: unknown[] = [];
  store.watch(view, two, traits => late.push(traits));
  assert.deepEqual(late, [{ scene: 2, status: '' }]);
  leave();
  page.pass(0);
  assert.deepEqual(page.socket.sent.at(-1)?.views, []);
});

test('after an error a view has only what comes next', () => {
  const { page, store } = connected('demo');
  const view = { cluster: 'demo', kind: 'shards', model: 'model' } as const;
  const late: unknown[] = [];
  store.watch(view, { visible: true }, () => undefined);
  page.socket.say({ now: 1, view, traits: { scene: 1, title: 'a' } });
  page.socket.say({ now: 2, view, traits: { error: 'no such model' } });
  page.socket.say({ now: 3, view, traits: { scene: 2, title: 'b' } });
  store.watch(view, { visible: true }, traits => late.push(traits));
  assert.deepEqual(late, [{ scene: 2, title: 'b' }]);
});

test('after a reconnect the server is told again what is looked at', () => {
  const { page, store } = connected('demo');
  store.look({ visible: true });
  page.pass(0);
  store.reconnect();
  page.socket.events.open();
  assert.equal(page.sockets.length, 2);
  assert.equal(page.socket.sent.at(-1)?.chosen, 'demo');
});

test('the choice is kept for a cluster that comes back, and falls to the first one meanwhile', () => {
  const { page, store } = connected('a', 'b');
  store.choose('b');
  assert.equal(store.snapshot.chosen, 'b');
  page.socket.say({ now: 1, patch: { clusters: { b: null } } });
  assert.equal(store.snapshot.chosen, 'a');
  page.socket.say({ now: 2, state: stateOf('a', 'b') });
  assert.equal(store.snapshot.chosen, 'b');
  page.socket.say({ now: 3, patch: { clusters: { a: null, b: null } } });
  assert.equal(store.snapshot.chosen, null);
});

test('without the server extension it is said, and looked for seldom', async () => {
  const page = new FakePage();
  page.problem = { kind: 'absent', fault: { message: 'absent', why: '', do: 'enable it' } };
  const store = new Store(page);
  store.start();
  page.socket.events.close();
  await settle();
  assert.equal(store.snapshot.link, 'absent');
  assert.equal(store.snapshot.problem?.do, 'enable it');
  page.pass(29);
  assert.equal(page.sockets.length, 1);
  page.pass(2);
  assert.equal(page.sockets.length, 2);
  page.socket.events.open();
  page.socket.say({ now: 1, state: stateOf() });
  assert.equal(store.snapshot.link, 'live');
  assert.equal(store.snapshot.problem, null);
});

test('a name that every object has is no cluster', () => {
  const { store } = connected('demo');
  assert.equal(store.cluster('constructor'), null);
});

test('after dispose nothing happens any more', () => {
  const { page, store } = connected('demo');
  const socket = page.socket;
  store.dispose();
  assert.ok(socket.closed);
  socket.events.close();
  page.pass(100);
  assert.equal(page.sockets.length, 1);
});
