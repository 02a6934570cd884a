import { LabIcon } from '@jupyterlab/ui-components';

// Four hosts, each wired to each. `jp-icon3` takes the colour of the theme.
const CLUSTER = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
<g class="jp-icon3" stroke="#616161" stroke-width="1.5" fill="none">
<path d="M7 6.5h10M7 17.5h10M6 8v8M18 8v8M7.5 8l9 8M16.5 8l-9 8"/></g>
<g class="jp-icon3" fill="#616161"><rect x="2.5" y="3" width="7" height="6" rx="1.4"/>
<rect x="14.5" y="3" width="7" height="6" rx="1.4"/><rect x="2.5" y="15" width="7" height="6" rx="1.4"/>
<rect x="14.5" y="15" width="7" height="6" rx="1.4"/></g></svg>`;

export const clusterIcon = new LabIcon({ name: 'macluster:cluster', svgstr: CLUSTER });
