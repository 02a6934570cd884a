// The code that connects a notebook to a cluster: into the notebook in front, or dragged there.

/** What notebooks take as cells. */
export const CELLS_MIME = 'application/vnd.jupyter.cells';

export interface Commands {
  hasCommand(id: string): boolean;
  isEnabled(id: string, args?: object): boolean;
  execute(id: string, args?: object): Promise<unknown>;
}

/** What is dragged: a cell for a notebook, text for any editor. */
export function dragData(code: string): [mime: string, data: unknown][] {
  const cell = { cell_type: 'code', execution_count: null, metadata: {}, outputs: [], source: code };
  return [
    [CELLS_MIME, [cell]],
    ['text/plain', code]
  ];
}

const INSERT = 'notebook:insert-cell-below';
const REPLACE = 'notebook:replace-selection';

export const canInsert = (commands: Commands): boolean =>
  [INSERT, REPLACE].every(id => commands.hasCommand(id) && commands.isEnabled(id));

/** Put the code into a cell of the notebook in front: the current one when it is empty. */
export async function insertCode(
  commands: Commands,
  code: string,
  empty: boolean
): Promise<boolean> {
  if (!canInsert(commands)) {
    return false;
  }
  if (!empty) {
    await commands.execute(INSERT);
  }
  await commands.execute(REPLACE, { text: code });
  return true;
}

/** Whether the cell that has the focus in a notebook is an empty code cell. */
export function onEmptyCell(widget: unknown): boolean {
  // Looked at without JupyterLab's notebook package, which would double what has to be installed.
  const model = (
    widget as {
      content?: {
        activeCell?: { model?: { type?: string; sharedModel?: { getSource?(): string } } };
      };
    } | null
  )?.content?.activeCell?.model;
  return model?.type === 'code' && model.sharedModel?.getSource?.().trim() === '';
}
