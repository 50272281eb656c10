//! Skein's data plane beside others': `./lab bench dataplane`. Shell.

pub mod end;
