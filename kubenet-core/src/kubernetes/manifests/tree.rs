//! Reading one document into a JSON value, with bounds on what a small text may grow to.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deeper nesting is refused. Kubernetes objects stay well below.
const MAX_DEPTH: usize = 64;

/// What a document may still grow to, in bytes: aliases let a short text stand for a long one.
#[derive(Debug)]
pub(super) struct Allowance(Cell<usize>);

impl Allowance {
    pub(super) fn for_text(text: &str) -> Self {
        Self(Cell::new(text.len().saturating_mul(16).saturating_add(1 << 20)))
    }

    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        // A node costs a value and its place in a map or sequence.
        match self.0.get().checked_sub(bytes.saturating_add(8)) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(E::custom("its aliases expand to far more than the text holds")),
        }
    }
}

/// Reads a value. A key that stands twice in a mapping is an error: one of the two would be lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'a> {
    allowance: &'a Allowance,
    depth: usize,
}

impl<'a> Tree<'a> {
    pub(super) fn new(allowance: &'a Allowance) -> Self {
        Self { allowance, depth: 0 }
    }

    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format!("must not be nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.allowance.take(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.allowance.take(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.allowance.take(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.allowance.take(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.allowance.take(0)?;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is no number of JSON")))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.allowance.take(value.len())?;
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.allowance.take(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        self.allowance.take(0)?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        self.allowance.take(0)?;
        let mut entries = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            self.allowance.take(key.len())?;
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} stands twice in one mapping")));
            }
            let value = access.next_value_seed(inner)?;
            entries.insert(key, value);
        }
        Ok(entries.into())
    }
}
