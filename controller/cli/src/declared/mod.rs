//! What is declared in files: its objects, how they are read, and what has to be done until a
//! controller has them. Nothing here talks to anyone.

mod changes;
mod diff;
mod object;
mod read;

pub(crate) use changes::{Action, Change, Live, Request, Verb, plan};
pub(crate) use diff::shown;
pub(crate) use object::{Kind, Object};
pub(crate) use read::{Declared, Form, parse};
