//! systemd units and drop-ins as text. Pure.
