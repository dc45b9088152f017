//! agent/netboot
