// Bundles lib/ into dist/ with JupyterLab's own builder; no network and no Python are needed.

import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const require = createRequire(import.meta.url);
const modules = join(root, 'node_modules');

// Old chunks carry their hash in their name: they would stay.
rmSync(join(root, 'dist'), { recursive: true, force: true });
const { status } = spawnSync(
  process.execPath,
  [
    require.resolve(join(modules, '@jupyter/builder/lib/build-labextension.js')),
    '--core-package-file',
    join(modules, '@jupyterlab/core-meta/core.package.json'),
    root
  ],
  { cwd: root, stdio: 'inherit' }
);
process.exit(status ?? 1);
