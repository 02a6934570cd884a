"use strict";(self.rspackChunkmacluster=self.rspackChunkmacluster||[]).push([[1],{22(e,o,r){var t=r(23),l=r.n(t),a=r(24),n=(r.n(a))()(l());n.push([e.id,`/* All colours come from the theme, but for the states' own, which have a light and a dark form. */
.mcl-Sidebar,
.mcl-TabWidget,
.mcl-StatusItem,
.mcl-Start {
  --mcl-ok: #128a7d;
  --mcl-busy: #a9660a;
  --mcl-alarm: #b3261e;
  --mcl-serving: #284c96;
  --mcl-arrays: #284c96;
  --mcl-process: #6d87ad;
  --mcl-used: #b7c5d9;
  --mcl-faint: var(--jp-ui-font-color2);
  --mcl-line: var(--jp-border-color2);
}

[data-jp-theme-light='false'] :is(.mcl-Sidebar, .mcl-TabWidget, .mcl-StatusItem, .mcl-Start) {
  --mcl-ok: #3fc7b4;
  --mcl-busy: #eab04d;
  --mcl-alarm: #ff8a80;
  --mcl-serving: #95d1ec;
  --mcl-arrays: #95c4ec;
  --mcl-process: #6a8cb8;
  --mcl-used: #43546b;
}

.mcl-Sidebar {
  background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1);
  font-size: var(--jp-ui-font-size1);
  line-height: 1.4;
  /* JupyterLab gives its own by an id. */
  min-width: 290px !important;
  overflow: hidden;
}

.mcl-Panel {
  display: flex;
  flex-direction: column;
  height: 100%;
}

.mcl-Panel :is(h2, h3, h4, p, ul, pre),
.mcl-TabWidget :is(h2, p, ul, pre),
.mcl-Start :is(p, pre) {
  margin: 0;
  padding: 0;
  list-style: none;
}

.mcl-Header {
  align-items: center;
  border-bottom: 1px solid var(--mcl-line);
  display: flex;
  flex: none;
  justify-content: space-between;
  padding: 5px 8px 5px 12px;
}

.mcl-Header h2,
.mcl-Section-head h4 {
  font-size: var(--jp-ui-font-size0);
  font-weight: 600;
  letter-spacing: 1px;
  text-transform: uppercase;
}

.mcl-Scroll {
  flex: 1 1 auto;
  overflow: hidden auto;
  padding-bottom: 16px;
}

.mcl-mod-old > * {
  opacity: 0.6;
}

.mcl-Faint,
.mcl-Hint {
  color: var(--mcl-faint);
  font-size: 12px;
}

.mcl-Hint {
  padding: 8px 12px !important;
}

.mcl-Hidden {
  clip-path: inset(50%);
  height: 1px;
  overflow: hidden;
  position: absolute;
  width: 1px;
}

.mcl-Elapsed {
  font-variant-numeric: tabular-nums;
  white-space: nowrap;
}

/* -- marks of states -- */

.mcl-Mark {
  color: var(--mcl-faint);
  flex: none;
  height: 12px;
  width: 12px;
}

.mcl-Mark .mcl-fill {
  fill: currentcolor;
}

.mcl-Mark .mcl-line {
  fill: none;
  stroke: currentcolor;
  stroke-linecap: round;
  stroke-width: 1.8;
}

.mcl-Mark .mcl-dashed {
  stroke-dasharray: 2 2.4;
}

.mcl-is-idle {
  color: var(--mcl-ok);
}

.mcl-is-busy,
.mcl-is-repairing {
  color: var(--mcl-busy);
}

.mcl-is-serving {
  color: var(--mcl-serving);
}

.mcl-is-broken,
.mcl-is-dead,
.mcl-is-lost {
  color: var(--mcl-alarm);
}

.mcl-is-starting {
  animation: mcl-turn 1.2s linear infinite;
}

@keyframes mcl-turn {
  to {
    transform: rotate(360deg);
  }
}

@media (prefers-reduced-motion: reduce) {
  .mcl-is-starting,
  .mcl-Spinner {
    animation: none !important;
  }
}

/* -- buttons -- */

.mcl-Button {
  align-items: center;
  background: transparent;
  border: 1px solid var(--jp-border-color1);
  border-radius: var(--jp-border-radius);
  color: var(--jp-ui-font-color1);
  cursor: pointer;
  display: inline-flex;
  font: inherit;
  font-size: 12px;
  gap: 5px;
  line-height: 16px;
  min-height: 24px;
  padding: 2px 8px;
  white-space: nowrap;
}

.mcl-Button:hover:not([aria-disabled]) {
  background: var(--jp-layout-color2);
}

.mcl-Button[aria-disabled] {
  border-color: var(--mcl-line);
  color: var(--jp-ui-font-color3);
  cursor: default;
}

.mcl-Button[aria-busy] {
  color: var(--jp-ui-font-color1);
  cursor: progress;
}

.mcl-Button.mcl-mod-primary:not([aria-disabled]) {
  background: var(--jp-brand-color1);
  border-color: var(--jp-brand-color1);
  color: var(--jp-ui-inverse-font-color1);
}

.mcl-Button.mcl-mod-danger:not([aria-disabled]) {
  color: var(--mcl-alarm);
}

.mcl-LinkButton,
.mcl-Backend,
.mcl-Section-head h4 button,
.mcl-Close {
  background: none;
  border: 0;
  color: inherit;
  cursor: pointer;
  font: inherit;
  letter-spacing: inherit;
  padding: 0;
  text-transform: inherit;
}

.mcl-LinkButton {
  border-radius: 2px;
  color: var(--jp-content-link-color, var(--jp-brand-color1));
  font-size: 12px;
  padding: 1px 3px;
}

.mcl-LinkButton:hover {
  text-decoration: underline;
}

:is(.mcl-Sidebar, .mcl-TabWidget, .mcl-StatusItem)
  :is(button, a, li, pre, [tabindex]):focus-visible {
  outline: 2px solid var(--jp-brand-color1);
  outline-offset: -1px;
}

.mcl-Close {
  flex: none;
  height: 20px;
  width: 20px;
}

.mcl-Close svg {
  fill: none;
  height: 12px;
  stroke: currentcolor;
  stroke-linecap: round;
  stroke-width: 1.5;
  vertical-align: middle;
  width: 12px;
}

.mcl-Spinner {
  animation: mcl-turn 0.9s linear infinite;
  border: 2px solid var(--jp-border-color1);
  border-radius: 50%;
  border-top-color: var(--jp-brand-color1);
  box-sizing: border-box;
  height: 12px;
  width: 12px;
}

/* -- boxes -- */

.mcl-Box {
  background: var(--jp-layout-color2);
  border-left: 3px solid var(--jp-border-color1);
  display: flex;
  font-size: 12px;
  gap: 6px;
  margin: 8px 12px;
  padding: 7px 6px 7px 9px;
}

.mcl-Box-text {
  flex: 1;
  min-width: 0;
  overflow-wrap: anywhere;
  user-select: text;
  white-space: pre-line;
}

.mcl-Box-text p {
  margin-top: 4px;
}

.mcl-Box-do {
  font-weight: 600;
}

.mcl-Box.mcl-mod-error {
  border-color: var(--mcl-alarm);
}

.mcl-Box.mcl-mod-stale {
  border-color: var(--mcl-busy);
}

.mcl-Box.mcl-mod-done {
  border-color: var(--mcl-ok);
}

.mcl-Box pre {
  background: none;
  color: inherit;
  font-family: var(--jp-code-font-family);
  font-size: 11.5px;
  line-height: 1.45;
  margin-top: 4px;
  max-height: 168px;
  overflow: auto;
  white-space: pre-wrap;
}

.mcl-Empty {
  padding: 14px 12px;
}

.mcl-Empty pre + p,
.mcl-Empty p + p {
  color: var(--mcl-faint);
  margin-top: 8px;
}

.mcl-Empty pre,
.mcl-Code {
  background: var(--jp-cell-editor-background);
  border: 1px solid var(--jp-cell-editor-border-color);
  color: var(--jp-ui-font-color1);
  font-family: var(--jp-code-font-family);
  font-size: 12px;
  line-height: 1.45;
  margin-top: 8px !important;
  overflow-x: auto;
  padding: 6px 8px !important;
}

/* -- the list of clusters -- */

.mcl-List {
  border-bottom: 1px solid var(--mcl-line);
  max-height: 300px;
  overflow-y: auto;
  padding: 4px 0 !important;
}

.mcl-Cluster {
  align-items: center;
  cursor: pointer;
  display: grid;
  gap: 0 8px;
  grid-template-columns: 12px minmax(0, 1fr) auto;
  padding: 4px 12px;
}

.mcl-Cluster:hover {
  background: var(--jp-layout-color2);
}

.mcl-Cluster[aria-selected='true'] {
  background: var(--jp-layout-color2);
  box-shadow: inset 3px 0 var(--jp-brand-color1);
}

.mcl-Cluster-name {
  font-weight: 600;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.mcl-Cluster-state {
  font-size: 12px;
  grid-column: 3;
  grid-row: 1;
}

.mcl-Cluster-under {
  color: var(--mcl-faint);
  font-size: 12px;
  grid-column: 2 / 4;
  grid-row: 2;
}

/* -- the chosen cluster -- */

.mcl-Headline {
  padding: 10px 12px 2px;
}

.mcl-Headline h3 {
  font-size: 15px;
  font-weight: 600;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.mcl-Headline-line {
  align-items: baseline;
  display: flex;
  flex-wrap: wrap;
  gap: 2px 14px;
}

.mcl-State {
  align-items: baseline;
  display: inline-flex;
  gap: 6px;
  white-space: nowrap;
}

.mcl-State .mcl-Mark {
  align-self: center;
}

.mcl-Backend {
  text-decoration: underline dotted;
  text-underline-offset: 3px;
}

.mcl-Why {
  border-left: 2px solid var(--mcl-line);
  color: var(--mcl-faint);
  font-size: 12px;
  margin: 4px 0 2px;
  overflow-wrap: anywhere;
  padding-left: 8px;
}

.mcl-Words {
  font-size: 12px;
  margin-top: 4px !important;
  overflow-wrap: anywhere;
}

.mcl-Serving {
  font-size: 12px;
  overflow-wrap: anywhere;
}

.mcl-Serving a {
  color: var(--jp-content-link-color);
}

.mcl-Actions {
  align-items: center;
  display: flex;
  flex-wrap: wrap;
  gap: 5px;
  padding: 8px 12px;
}

/* -- sections -- */

.mcl-Section {
  border-top: 1px solid var(--mcl-line);
}

.mcl-Section-head {
  align-items: center;
  display: flex;
  gap: 8px;
  padding: 5px 9px 5px 8px;
}

.mcl-Section-head h4 {
  flex: none;
}

.mcl-Section-head h4 button {
  align-items: center;
  display: flex;
  gap: 4px;
}

.mcl-Section-head svg {
  fill: none;
  height: 12px;
  stroke: currentcolor;
  stroke-linecap: round;
  stroke-linejoin: round;
  stroke-width: 1.6;
  width: 12px;
}

.mcl-Section-head .mcl-Faint {
  flex: 1;
  min-width: 0;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.mcl-Section-head .mcl-LinkButton {
  margin-left: auto;
}

.mcl-Section-body {
  padding: 0 12px 10px;
}

.mcl-Section-body .mcl-Hint {
  padding: 4px 0 !important;
}

/* In the narrow sidebar the picture alone is shown; its figures are in the tab. */
.mcl-Wiring {
  cursor: pointer;
  max-height: 380px;
  overflow: hidden auto;
}

.mcl-Wiring .macluster-topology {
  padding: 0;
}

.mcl-Wiring .macluster-topology .panel {
  display: none;
}

.mcl-Wiring .macluster-topology :is(.badge, .hint) {
  display: none;
}

.mcl-Wiring .macluster-topology .head .name {
  color: var(--mcl-faint);
  font-size: 12px;
  font-weight: normal;
}

.mcl-Wiring .macluster-topology .warnings {
  margin: 2px 0 0;
}

/* In full in the tab. */
.mcl-Wiring .macluster-topology .warnings li {
  -webkit-box-orient: vertical;
  -webkit-line-clamp: 2;
  display: -webkit-box;
  font-size: 12px;
  overflow: hidden;
}

.mcl-Wiring .macluster-topology .graph {
  flex-basis: 100%;
}

.mcl-Wiring .macluster-topology .macluster-network text {
  font-size: var(--mcl-letters, 12px);
}

.mcl-Wiring .macluster-topology .graph svg {
  min-width: 0 !important;
}

/* -- ranks -- */

.mcl-Ranks {
  margin: 0 -12px !important;
}

.mcl-Ranks.mcl-mod-many {
  max-height: 560px;
  overflow-y: auto;
}

.mcl-Rank {
  contain-intrinsic-size: auto 62px;
  content-visibility: auto;
  padding: 4px 12px !important;
}

.mcl-Rank + .mcl-Rank {
  border-top: 1px solid var(--jp-border-color3);
}

.mcl-Rank:hover {
  background: var(--jp-layout-color2);
}

.mcl-Rank-line {
  align-items: center;
  display: flex;
  gap: 7px;
}

.mcl-Rank-number {
  font-variant-numeric: tabular-nums;
  font-weight: 600;
  min-width: 1ch;
}

.mcl-Rank-host {
  flex: 1;
  min-width: 0;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.mcl-Rank-state {
  color: var(--mcl-faint);
  font-size: 12px;
  white-space: nowrap;
}

.mcl-Rank[data-state='dead'] .mcl-Rank-state {
  color: var(--mcl-alarm);
  font-weight: 600;
}

.mcl-Rank-doing {
  color: var(--mcl-faint);
  font-size: 12px;
  overflow: hidden;
  padding-left: 19px;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.mcl-Rank-doing code {
  color: var(--jp-ui-font-color1);
  font-family: var(--jp-code-font-family);
  font-size: 11.5px;
}

.mcl-Rank-figures {
  color: var(--mcl-faint);
  font-size: 11px;
  font-variant-numeric: tabular-nums;
  padding-left: 19px;
}

.mcl-Memory {
  align-items: center;
  display: flex;
  gap: 8px;
  padding-left: 19px;
}

.mcl-Memory-bar {
  background: var(--jp-layout-color3);
  border-radius: 2px;
  display: flex;
  flex: 1;
  height: 7px;
  overflow: hidden;
}

.mcl-Memory-arrays {
  background: var(--mcl-arrays);
}

.mcl-Memory-process {
  background: var(--mcl-process);
}

.mcl-Memory-used {
  background: var(--mcl-used);
}

.mcl-Memory-short {
  color: var(--mcl-faint);
  flex: none;
  font-size: 12px;
  font-variant-numeric: tabular-nums;
  /* So that the bars of all rows are of one length. */
  min-width: 88px;
  text-align: right;
}

.mcl-Key {
  color: var(--mcl-faint);
  font-size: 11px;
  padding: 6px 0 0 19px !important;
}

.mcl-Key i {
  border-radius: 1px;
  display: inline-block;
  height: 7px;
  margin: 0 2px 0 10px;
  width: 10px;
}

.mcl-Key i:first-child {
  margin-left: 0;
}

.mcl-Inline {
  display: flex;
  flex-wrap: wrap;
  gap: 0 8px;
}

.mcl-Inline > span {
  white-space: nowrap;
}

/* -- models -- */

.mcl-Model + .mcl-Model {
  margin-top: 10px;
}

.mcl-Model-line {
  align-items: baseline;
  display: flex;
  gap: 8px;
}

.mcl-Model-line code {
  font-family: var(--jp-code-font-family);
  font-size: 12px;
  font-weight: 600;
}

.mcl-Model-source {
  color: var(--mcl-faint);
  direction: rtl;
  flex: 1;
  font-size: 12px;
  min-width: 0;
  overflow: hidden;
  text-align: left;
  text-overflow: ellipsis;
  unicode-bidi: plaintext;
  white-space: nowrap;
}

.mcl-Shards {
  display: block;
  height: 52px;
  margin-top: 4px;
  width: 100%;
}

.mcl-Slice {
  stroke: var(--jp-layout-color1);
  stroke-width: 1.5;
}

.mcl-Slice.mcl-mod-even {
  fill: var(--mcl-process);
}

.mcl-Slice.mcl-mod-odd {
  fill: var(--mcl-used);
}

.mcl-Shards text {
  dominant-baseline: central;
  fill: var(--jp-ui-font-color0);
  font-size: 10.5px;
  pointer-events: none;
  text-anchor: middle;
}

/* -- connect -- */

.mcl-Connect .mcl-Actions {
  padding: 6px 0 0;
}

.mcl-Code {
  cursor: grab;
  margin-top: 0 !important;
  touch-action: none;
  user-select: none;
}

.mcl-Drag {
  background: var(--jp-layout-color1);
  border: 1px solid var(--jp-border-color1);
  box-shadow: var(--jp-elevation-z6);
  color: var(--jp-ui-font-color1);
  font-family: var(--jp-code-font-family);
  font-size: 12px;
  padding: 6px 10px;
}

/* -- tabs -- */

.mcl-TabWidget {
  background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1);
  font-size: var(--jp-ui-font-size1);
  line-height: 1.4;
  outline: none;
  overflow: auto;
}

.mcl-Tab {
  box-sizing: border-box;
  display: flex;
  flex-direction: column;
  min-height: 100%;
}

.mcl-Tab-head {
  align-items: baseline;
  border-bottom: 1px solid var(--mcl-line);
  display: flex;
  flex-wrap: wrap;
  gap: 2px 16px;
  padding: 8px 14px;
}

.mcl-Tab-head h2 {
  font-size: 15px;
  font-weight: 600;
}

.mcl-Tab-stale {
  color: var(--mcl-busy);
  font-weight: 600;
}

.mcl-Tab-tools {
  align-items: center;
  display: flex;
  gap: 8px;
  padding: 8px 14px;
}

.mcl-Tab-body {
  padding: 8px 14px;
}

.mcl-Text {
  background: none;
  box-sizing: border-box;
  color: var(--jp-content-font-color1);
  flex: 1 1 0;
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size);
  line-height: 1.4;
  min-height: 120px;
  overflow: auto;
  padding: 4px 14px 14px !important;
  user-select: text;
  white-space: pre-wrap;
}

.mcl-Logs {
  display: flex;
  flex: 1 1 0;
  min-height: 120px;
}

.mcl-Logs > ul {
  border-right: 1px solid var(--mcl-line);
  flex: none;
  max-width: 180px;
  overflow-y: auto;
}

.mcl-Logs > ul > li {
  cursor: pointer;
  overflow: hidden;
  padding: 4px 14px !important;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.mcl-Logs > ul > li:hover {
  background: var(--jp-layout-color2);
}

.mcl-Logs > ul > li[aria-selected='true'] {
  background: var(--jp-layout-color2);
  box-shadow: inset 3px 0 var(--jp-brand-color1);
}

/* -- the status bar -- */

.mcl-StatusItem {
  display: flex;
}

.mcl-Status {
  align-items: center;
  background: none;
  border: 0;
  color: inherit;
  cursor: pointer;
  display: flex;
  font: inherit;
  gap: 6px;
  padding: 0 6px;
}

.mcl-Status:hover {
  background: var(--jp-layout-color3);
}

/* -- the dialog of a new cluster -- */

.mcl-StartDialog .jp-Dialog-content {
  max-height: min(760px, 96vh);
  max-width: 560px;
  width: 520px;
}

.mcl-Start {
  display: flex;
  flex-direction: column;
  font-size: var(--jp-ui-font-size1);
  gap: 12px;
  overflow: auto;
}

.mcl-Start fieldset {
  border: 0;
  margin: 0;
  min-width: 0;
  padding: 0;
}

.mcl-Start legend {
  font-weight: 600;
  padding: 0 0 4px;
}

.mcl-Start label {
  align-items: baseline;
  display: flex;
  gap: 7px;
}

.mcl-Start input:is([type='radio'], [type='checkbox']) {
  flex: none;
  margin: 0;
  position: relative;
  top: 1px;
}

.mcl-Where {
  padding: 2px 0;
}

.mcl-Where-field {
  padding: 4px 0 4px 22px;
}

.mcl-Where-field label {
  align-items: stretch;
  color: var(--mcl-faint);
  flex-direction: column;
  font-size: 12px;
  gap: 3px;
}

.mcl-Start .mcl-Count {
  width: 96px;
}

.mcl-Start textarea {
  font-family: var(--jp-code-font-family);
  resize: vertical;
}

.mcl-Field {
  font-weight: 600;
}

.mcl-Field input {
  flex: 1;
}

.mcl-BackendRow {
  padding: 2px 0;
}

.mcl-BackendRow > span {
  flex: 0 0 76px;
}

.mcl-BackendRow small,
.mcl-Checked small {
  color: var(--mcl-faint);
  font-size: 12px;
  min-width: 0;
}

.mcl-BackendRow.mcl-mod-unfit > span {
  color: var(--mcl-faint);
}

.mcl-Checked small {
  display: block;
}

.mcl-Start .mcl-Box {
  margin: 6px 0 0;
}

.mcl-Start .mcl-Hint {
  padding: 0 !important;
}
`,""]),r.d(o,{},{A:n})},24(e){e.exports=function(e){var o=[];return o.toString=function(){return this.map(function(o){var r="",t=void 0!==o[5];return o[4]&&(r+="@supports (".concat(o[4],") {")),o[2]&&(r+="@media ".concat(o[2]," {")),t&&(r+="@layer".concat(o[5].length>0?" ".concat(o[5]):""," {")),r+=e(o),t&&(r+="}"),o[2]&&(r+="}"),o[4]&&(r+="}"),r}).join("")},o.i=function(e,r,t,l,a){"string"==typeof e&&(e=[[null,e,void 0]]);var n={};if(t)for(var i=0;i<this.length;i++){var c=this[i][0];null!=c&&(n[c]=!0)}for(var p=0;p<e.length;p++){var m=[].concat(e[p]);t&&n[m[0]]||(void 0!==a&&(void 0===m[5]||(m[1]="@layer".concat(m[5].length>0?" ".concat(m[5]):""," {").concat(m[1],"}")),m[5]=a),r&&(m[2]&&(m[1]="@media ".concat(m[2]," {").concat(m[1],"}")),m[2]=r),l&&(m[4]?(m[1]="@supports (".concat(m[4],") {").concat(m[1],"}"),m[4]=l):m[4]="".concat(l)),o.push(m))}},o}},23(e){e.exports=function(e){return e[1]}},16(e){var o=[];function r(e){for(var r=-1,t=0;t<o.length;t++)if(o[t].identifier===e){r=t;break}return r}function t(e,t){for(var l={},a=[],n=0;n<e.length;n++){var i=e[n],c=t.base?i[0]+t.base:i[0],p=l[c]||0,m="".concat(c," ").concat(p);l[c]=p+1;var s=r(m),d={css:i[1],media:i[2],sourceMap:i[3],supports:i[4],layer:i[5]};if(-1!==s)o[s].references++,o[s].updater(d);else{var f=function(e,o){var r=o.domAPI(o);return r.update(e),function(o){o?(o.css!==e.css||o.media!==e.media||o.sourceMap!==e.sourceMap||o.supports!==e.supports||o.layer!==e.layer)&&r.update(e=o):r.remove()}}(d,t);t.byIndex=n,o.splice(n,0,{identifier:m,updater:f,references:1})}a.push(m)}return a}e.exports=function(e,l){var a=t(e=e||[],l=l||{});return function(e){e=e||[];for(var n=0;n<a.length;n++){var i=r(a[n]);o[i].references--}for(var c=t(e,l),p=0;p<a.length;p++){var m=r(a[p]);0===o[m].references&&(o[m].updater(),o.splice(m,1))}a=c}}},18(e){var o={};e.exports=function(e,r){var t=function(e){if(void 0===o[e]){var r=document.querySelector(e);if(window.HTMLIFrameElement&&r instanceof window.HTMLIFrameElement)try{r=r.contentDocument.head}catch(e){r=null}o[e]=r}return o[e]}(e);if(!t)throw Error("Couldn't find a style target. This probably means that the value for the 'insert' parameter is invalid.");t.appendChild(r)}},20(e){e.exports=function(e){var o=document.createElement("style");return e.setAttributes(o,e.attributes),e.insert(o,e.options),o}},19(e,o,r){e.exports=function(e){var o=r.nc;o&&e.setAttribute("nonce",o)}},17(e){e.exports=function(e){if("u"<typeof document)return{update:function(){},remove:function(){}};var o=e.insertStyleElement(e);return{update:function(r){var t,l,a;t="",r.supports&&(t+="@supports (".concat(r.supports,") {")),r.media&&(t+="@media ".concat(r.media," {")),(l=void 0!==r.layer)&&(t+="@layer".concat(r.layer.length>0?" ".concat(r.layer):""," {")),t+=r.css,l&&(t+="}"),r.media&&(t+="}"),r.supports&&(t+="}"),(a=r.sourceMap)&&"u">typeof btoa&&(t+="\n/*# sourceMappingURL=data:application/json;base64,".concat(btoa(unescape(encodeURIComponent(JSON.stringify(a))))," */")),e.styleTagTransform(t,o,e.options)},remove:function(){var e;null===(e=o).parentNode||e.parentNode.removeChild(e)}}}},21(e){e.exports=function(e,o){if(o.styleSheet)o.styleSheet.cssText=e;else{for(;o.firstChild;)o.removeChild(o.firstChild);o.appendChild(document.createTextNode(e))}}},15(e,o,r){var t=r(16),l=r.n(t),a=r(17),n=r.n(a),i=r(18),c=r.n(i),p=r(19),m=r.n(p),s=r(20),d=r.n(s),f=r(21),x=r.n(f),u=r(22),g={};g.styleTagTransform=x(),g.setAttributes=m(),g.insert=c().bind(null,"head"),g.domAPI=n(),g.insertStyleElement=d(),l()(u.A,g),u.A&&u.A.locals&&u.A.locals}}]);