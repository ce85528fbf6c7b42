//! Data sets: manifest, fetch, read, tokenize, batch, evaluate
