// Ids that do not depend on the folder: the bundle in git can be compared with a rebuild anywhere.
module.exports = { optimization: { moduleIds: 'natural', chunkIds: 'natural' } };
