//! Trees as people make them, with the real helm: what is found, where, and what is said of what cannot be.

mod charts;
mod layouts;
mod templates;
mod tree;
