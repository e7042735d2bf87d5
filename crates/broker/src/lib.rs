//! Topics, produce, fetch, producer ids: the asynchronous heart above the store
