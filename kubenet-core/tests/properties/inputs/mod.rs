//! No input panics: each is taken, or refused by name.

mod builders;
mod json;
mod text;
mod values;
