// Where the time of a token goes, on the page. Drawn with picture.js, which stands before this.

function render({ model, el }) {
  const root = frame(model, el);
  draw(model.get("scene"), html("div", "", root));
  paragraphs(model.get("words"), html("div", "", root), "main");
}

export default { render };
