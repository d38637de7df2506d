//! Images that are mounted: one by one ([`Engine`]), and the daemon's table of them ([`Table`]).

mod arrivals;
mod engine;
mod make;
mod own;
mod slot;
mod table;
mod turns;

pub use arrivals::Arrival;
pub use engine::{Engine, EngineConfig, Image, MountError, Mounted, Prepared};
pub use make::MakeError;
pub use table::{Table, TableError};
