import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Actions, allowed, failedStart } from '../actions.js';
import { Api, ApiError, asFault, faultOf, type Answer } from '../api.js';
import { english } from '../trans.js';
import type { Cluster } from '../types.js';

type Call = [method: string, path: string, body?: unknown];

function api(answer: Answer | Error): { calls: Call[]; api: Api } {
  const calls: Call[] = [];
  return {
    calls,
    api: new Api(async (...call) => {
      calls.push(call);
      if (answer instanceof Error) {
        throw answer;
      }
      return answer;
    })
  };
}

const ok = (body: unknown): Answer => ({ status: 200, text: JSON.stringify(body) });

test('names are encoded, and nothing but the name is in a URL', async () => {
  const { calls, api: server } = api(ok({ words: 'stopped' }));
  assert.equal(await server.act('a/b c', 'stop'), 'stopped');
  assert.deepEqual(calls, [['POST', 'clusters/a%2Fb%20c/stop', {}]]);
});

test('an order to start carries all that was asked for', async () => {
  const { calls, api: server } = api({ status: 202, text: '{"name": "x"}' });
  const wish = { hosts: ['m1', 'm2'], backend: null, name: 'x', checked: true };
  assert.equal(await server.start(wish), 'x');
  assert.deepEqual(calls, [['POST', 'clusters', wish]]);
});

test('an error of ours says what, why and what to do', async () => {
  const fault = { message: 'No such cluster.', why: 'It was stopped.', do: 'Look at the list.' };
  const { api: server } = api({ status: 404, text: JSON.stringify(fault) });
  await assert.rejects(server.stacks('x'), (error: unknown) => {
    assert.ok(error instanceof ApiError);
    assert.equal(error.status, 404);
    assert.deepEqual(error.fault, fault);
    return true;
  });
});

test('a 404 that is not ours is an extension that is not there', () => {
  const fault = faultOf({ status: 404, text: '{"message": "Not Found"}' }, english);
  assert.match(fault.do, /jupyter server extension enable macluster/);
});

test('403 asks to log in again', () => {
  assert.match(faultOf({ status: 403, text: '' }, english).do, /log in/);
});

test('an error page of a proxy is an error with its status', () => {
  const fault = faultOf({ status: 502, text: '<html>Bad Gateway</html>' }, english);
  assert.match(fault.message, /502/);
});

test('a server that is not reached is named', async () => {
  const { api: server } = api(new TypeError('Failed to fetch'));
  await assert.rejects(server.logs('x'), (error: unknown) => {
    assert.match(asFault(error).message, /does not answer/);
    return true;
  });
});

test('a success that is not JSON is an error all the same', async () => {
  const { api: server } = api({ status: 200, text: '<html>log in</html>' });
  await assert.rejects(server.connect('x'), ApiError);
});

// -- actions ---------------------------------------------------------------------------------------

test('an action runs once at a time, and its end is a notice', async () => {
  let end = (_words: string): void => undefined;
  let calls = 0;
  const unseen: string[] = [];
  const actions = new Actions(
    {
      act: () => {
        calls += 1;
        return new Promise<string>(done => {
          end = done;
        });
      }
    },
    notice => unseen.push(notice.words)
  );
  const first = actions.act('demo', 'stop');
  assert.ok(actions.runs('demo', 'stop'));
  assert.equal(await actions.act('demo', 'stop'), false);
  assert.equal(calls, 1);
  end('stopped');
  assert.equal(await first, true);
  assert.ok(!actions.runs('demo', 'stop'));
  assert.equal(actions.state.notices.get('demo')?.words, 'stopped');
  assert.deepEqual(unseen, ['stopped']);
  actions.dismiss('demo');
  assert.equal(actions.state.notices.size, 0);
});

test('an action that fails leaves its fault, and can be tried again', async () => {
  const fault = { message: 'busy', why: 'a cell runs', do: 'wait' };
  const actions = new Actions({ act: () => Promise.reject(new ApiError(fault, 409)) });
  assert.equal(await actions.act('demo', 'measure'), false);
  assert.deepEqual(actions.state.notices.get('demo')?.fault, fault);
  assert.ok(!actions.runs('demo', 'measure'));
});

const cluster = (changes: Partial<Cluster>): Cluster =>
  ({ size: 2, state: 'idle', busy: null, failure: null, ranks: {}, ...changes }) as Cluster;

test('what can be done depends on the state', () => {
  const can = (changes: Partial<Cluster>): string =>
    (['interrupt', 'abort', 'stacks', 'measure', 'restart', 'stop', 'dismiss'] as const)
      .filter(action => allowed(cluster(changes), action))
      .join(' ');
  assert.equal(can({ state: 'idle' }), 'stacks measure restart stop');
  assert.equal(can({ state: 'busy' }), 'interrupt abort stacks restart stop');
  assert.equal(can({ state: 'starting' }), 'stop');
  assert.equal(can({ state: 'stopping' }), '');
  assert.equal(can({ state: 'repairing' }), 'abort stacks restart stop');
  assert.equal(can({ state: 'lost' }), 'restart stop');
});

test('a start that failed is dismissed; a broken world with processes is stopped', () => {
  const failure = { words: 'rank 1: no route', at: 1 };
  const rank = (pid: number | null): never => ({ rank: 0, pid, state: 'idle' }) as never;
  assert.ok(failedStart(cluster({ state: 'broken', failure })));
  assert.ok(allowed(cluster({ state: 'broken', failure }), 'dismiss'));
  assert.ok(!allowed(cluster({ state: 'broken', failure }), 'restart'));
  assert.ok(failedStart(cluster({ state: 'broken', failure, ranks: { 0: rank(null) } })));
  assert.ok(!failedStart(cluster({ state: 'broken', failure, ranks: { 0: rank(7) } })));
  assert.ok(!failedStart(cluster({ state: 'broken' })));
});
