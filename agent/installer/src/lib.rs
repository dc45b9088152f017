//! agent/installer
