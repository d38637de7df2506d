//! The BuildKit side: proxies Control, captures a build's result, converts and pushes it.
