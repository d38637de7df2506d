//! What the process of every role needs, whatever it does.
//!
//! - [`log`]: where log lines go without ever holding up or ending the process;
//! - [`address`]: how addresses are written, on the command line and in the configuration;
//! - [`control`]: sockets over which a process is told what to do, and is asked what it does;
//! - [`mod@describe`]: errors as text;
//! - [`limits`]: limits of the process;
//! - [`line`](mod@line): lines over local sockets, which control sockets speak;
//! - [`metrics`]: what a process counts, for Prometheus;
//! - [`memory`]: what the allocator keeps;
//! - [`manager`]: what the service manager is told;
//! - [`program`]: the program that runs;
//! - [`socket`]: local sockets that only those may connect to who are meant to.

#![deny(unsafe_code)]

pub mod address;
pub mod control;
pub mod describe;
pub mod limits;
pub mod line;
pub mod log;
pub mod manager;
pub mod memory;
pub mod metrics;
pub mod program;
pub mod socket;

pub use address::{InvalidAddress, SocketAddress, TcpAddress, UnixAddress};
pub use describe::describe;
pub use socket::{Access, BindError, Mode, SocketFile, bind_private};
