// Makes src/views/*.js from the notebook widgets' own files, so that both draw with the same code.
// Which files, and in which order, is read from the Python classes: it is said once.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const widgets = join(here, '..', '..', 'widgets');
const target = join(here, '..', 'src', 'views');
const read = name => readFileSync(join(widgets, name), 'utf8');

mkdirSync(target, { recursive: true });
for (const name of ['topology', 'measure', 'shards']) {
  const python = read(`${name}.py`);
  const made = /^ {4}_esm = (.*?)script\(\s*([^)]*?),?\s*\)/ms.exec(python);
  if (!made) {
    throw new Error(
      `widgets/${name}.py has no line "_esm = ... script(...)": the sidebar draws with those ` +
        'files. Remedy: teach labextension/scripts/views.mjs the new form.'
    );
  }
  const [, before, names] = made;
  const parts = names.split(',').map(each => read(JSON.parse(each.trim())));
  if (before.includes('NETWORK_STYLE')) {
    parts.unshift(`const NETWORK_STYLE = ${JSON.stringify(read('network.css'))};`);
  }
  writeFileSync(join(target, `${name}.js`), parts.join('\n'));
}
