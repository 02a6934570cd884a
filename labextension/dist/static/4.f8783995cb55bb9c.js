"use strict";(self.rspackChunkmacluster=self.rspackChunkmacluster||[]).push([[4],{27(e,t,r){r.r(t);let l=`macluster-${Math.random().toString(36).slice(2)}`,a=0;function s(e,t,r){let l=document.createElementNS("http://www.w3.org/2000/svg",e);for(let[e,r]of Object.entries(t))l.setAttribute(e,r);return r&&r.append(l),l}function i(e,t,r){let l=document.createElement(e);return l.className=t,r&&r.append(l),l}let o=`
.macluster-shards { --split: #2f6fd0; --experts: #8a4fc7; --whole: #128a7d; --copy: #d08a1d;
  --ink: var(--jp-ui-font-color1, #24292f); --faint: var(--jp-ui-font-color2, #57606a);
  --line: var(--jp-border-color1, #b1bac4); --paper: var(--jp-layout-color0, #fff);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--ink);
  max-width: 980px; padding: 4px 0; }
[data-jp-theme-light="false"] .macluster-shards { --split: #6aa5ff; --experts: #c095f5;
  --whole: #3fc7b4; --copy: #eab04d; }
.macluster-shards .title { font-size: 13px; font-weight: 600; margin: 0 0 6px 8px; }
.macluster-shards svg { display: block; width: 100%; height: auto; }
.macluster-shards text { fill: var(--ink); font-size: 12px; }
.macluster-shards text.small { fill: var(--faint); font-size: 10.5px; }
.macluster-shards .split { fill: var(--split); }
.macluster-shards .whole { fill: var(--whole); }
.macluster-shards .experts-thin { fill: var(--experts); }
.macluster-shards .split-tint { fill: var(--split); fill-opacity: .24; }
.macluster-shards .experts-split-tint { fill: var(--experts); fill-opacity: .26; }
.macluster-shards .none { fill: none; stroke: var(--line); stroke-opacity: .5; }
.macluster-shards .room { fill: var(--jp-layout-color2, #eaeef2); stroke: var(--line); }
.macluster-shards .hit { fill: transparent; stroke: none; }
.macluster-shards [role="gridcell"] { outline: none; cursor: default; }
.macluster-shards [role="gridcell"]:hover .hit { stroke: var(--faint); stroke-width: 1.5; }
.macluster-shards [role="gridcell"]:focus .hit { stroke: var(--ink); stroke-width: 2.5; }
.macluster-shards .detail { min-height: 32px; margin: 2px 8px 0; font-size: 12px;
  line-height: 16px; color: var(--faint); }
.macluster-shards .detail b { color: var(--ink); font-weight: 600; }
`,n="Point at a cell, or press Tab and walk with the arrow keys, to see its bytes.";function c([e,t,r,l,a],i,o){let n=s("rect",{class:e,x:t,y:r,width:l,height:a},o),d={copy:"copy","experts-split":"experts","experts-whole":"experts",cache:"cache"}[e];d&&(n.style.fill=`url(#${i}-${d})`)}r.d(t,{},{default:{render:function({model:e,el:t}){let r,d,h=e.get("scene"),p=`${l}-shards-${++a}`,f=i("div","macluster-shards",t);i("style","",f).textContent=o,i("div","title",f).textContent=e.get("title");let u=s("svg",{viewBox:`0 0 ${h.width} ${h.height}`,role:"grid","aria-label":h.label,"aria-rowcount":h.rows.length},f);for(let[e,t,l,a,i]of(u.style.maxWidth=`${h.width}px`,r=s("defs",{},u),d=(e,t,l)=>{let a=s("pattern",{id:`${p}-${e}`,width:t,height:t,patternUnits:"userSpaceOnUse"},r);return s("rect",{width:t,height:t,style:`fill: ${l}`},a),a},s("path",{d:"M0 2H4",style:"stroke: var(--paper); stroke-width: 1.2"},d("copy",4,"var(--copy)")),s("circle",{cx:2,cy:2,r:.8,style:"fill: var(--paper)"},d("experts",4,"var(--experts)")),s("path",{d:"M-1 6L6 -1",style:"stroke: var(--faint); stroke-width: 1.6"},d("cache",5,"var(--paper)")),h.texts)){let r=s("text",{class:e,x:t,y:l,"text-anchor":a},u);r.setAttribute("aria-hidden","true"),r.textContent=i}for(let e of h.shapes)c(e,p,u);let x=i("div","detail",f);x.textContent=n;let m=[],v=e=>{x.replaceChildren(),i("b","",x).textContent=e.label,e.detail&&x.append(` – ${e.detail}`)},w=0,g=0;h.rows.forEach((e,t)=>{let r=s("g",{role:"row","aria-label":e.label},u);m.push(e.cells.map((e,l)=>{let a=s("g",{role:"gridcell",tabindex:0===l&&0===t?0:-1,"aria-label":e.detail?`${e.label}: ${e.detail}`:e.label},r);for(let t of e.shapes)c(t,p,a);return s("rect",{class:"hit",x:e.x-1,y:e.y-1,width:e.w+2,height:e.h+2,rx:1.5},a),a.addEventListener("pointerenter",()=>v(e)),a.addEventListener("pointerleave",()=>{0>m.flat().indexOf(document.activeElement)?x.textContent=n:v(h.rows[w].cells[g])}),a.addEventListener("focus",()=>{for(let e of m.flat())e.setAttribute("tabindex",-1);a.setAttribute("tabindex",0),[w,g]=[t,l],v(e)}),a.addEventListener("blur",()=>{x.textContent=n}),a}))}),u.addEventListener("keydown",e=>{let t=m[w].length-1,r={ArrowLeft:[w,g-1],ArrowRight:[w,g+1],ArrowUp:[w-1,g],ArrowDown:[w+1,g],Home:[e.ctrlKey?0:w,0],End:[e.ctrlKey?m.length-1:w,t]};e.key in r&&(e.preventDefault(),e.stopPropagation(),((e,t)=>{w=Math.max(0,Math.min(m.length-1,e)),g=Math.max(0,Math.min(m[w].length-1,t)),m[w][g].focus({preventScroll:!0})})(...r[e.key]))})}}})}}]);