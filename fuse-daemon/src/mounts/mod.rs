//! Images that are mounted: one by one ([`Engine`]), and the daemon's table of them ([`Table`]).

mod engine;
mod make;
mod own;
mod table;

pub use engine::{Engine, EngineConfig, Image, MountError, Mounted, Prepared};
pub use make::MakeError;
pub use table::{Table, TableError};
