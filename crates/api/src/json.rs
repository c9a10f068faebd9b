//! JSON byte for byte as `serde_json` writes it, for what is written with every request: records of the audit and lines
//! of the access log. Most of what stands there are names of fields, ids and digests, which need no escape; `serde_json`
//! looks at each of their bytes by itself, and that was a tenth of a sidecar's own instructions.

use serde::ser::{self, Error as _, Serialize};
use serde_json::Error;

/// Appends `value` as compact JSON.
///
/// # Errors
/// `value` says so, or has a map whose keys are not text. `out` then ends with a part of it.
pub fn append<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), Error> {
    value.serialize(Json { out })
}

/// Writes one value.
struct Json<'o> {
    out: &'o mut Vec<u8>,
}

impl Json<'_> {
    /// What is rare, or short: numbers above all.
    fn other<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        serde_json::to_writer(self.out, value)
    }
}

/// Text in quotes.
fn text(out: &mut Vec<u8>, text: &str) -> Result<(), Error> {
    if !is_plain(text.as_bytes()) {
        return serde_json::to_writer(out, text);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

/// Whether nothing in it is escaped. Looks at all of it without a branch, many bytes at once.
fn is_plain(bytes: &[u8]) -> bool {
    let special = |byte: u8| (byte < b' ') | (byte == b'"') | (byte == b'\\');
    !bytes.iter().fold(false, |any, byte| any | special(*byte))
}

/// The members of a list or an object, up to its end.
struct Members<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
    /// What ends it; of a variant with content, its object, too.
    end: &'static [u8],
}

impl<'o> Members<'o> {
    fn begin(out: &'o mut Vec<u8>, begin: u8, end: &'static [u8]) -> Self {
        out.push(begin);
        Self { out, first: true, end }
    }

    /// As the content of a variant.
    fn of_variant(out: &'o mut Vec<u8>, variant: &str, begin: u8, end: &'static [u8]) -> Result<Self, Error> {
        out.push(b'{');
        text(out, variant)?;
        out.push(b':');
        Ok(Self::begin(out, begin, end))
    }

    fn next(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.next();
        append(self.out, value)
    }

    fn member<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        self.next();
        text(self.out, name)?;
        self.out.push(b':');
        append(self.out, value)
    }

    fn finish(self) -> Result<(), Error> {
        self.out.extend_from_slice(self.end);
        Ok(())
    }
}

macro_rules! others {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(self, value: $type) -> Result<(), Error> {
            self.other(&value)
        })*
    };
}

impl<'o> ser::Serializer for Json<'o> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Members<'o>;
    type SerializeTuple = Members<'o>;
    type SerializeTupleStruct = Members<'o>;
    type SerializeTupleVariant = Members<'o>;
    type SerializeMap = Members<'o>;
    type SerializeStruct = Members<'o>;
    type SerializeStructVariant = Members<'o>;

    others!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_f32: f32, serialize_f64: f64, serialize_char: char, serialize_bool: bool
    );

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.other(value)
    }
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        text(self.out, value)
    }
    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Error> {
        self.out.extend_from_slice(b"null");
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Error> {
        text(self.out, variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let mut object = Members::begin(self.out, b'{', b"}");
        object.member(variant, value)?;
        object.finish()
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Members<'o>, Error> {
        Ok(Members::begin(self.out, b'[', b"]"))
    }
    fn serialize_tuple(self, _: usize) -> Result<Members<'o>, Error> {
        self.serialize_seq(None)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Members<'o>, Error> {
        self.serialize_seq(None)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Members<'o>, Error> {
        Members::of_variant(self.out, variant, b'[', b"]}")
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Members<'o>, Error> {
        Ok(Members::begin(self.out, b'{', b"}"))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Members<'o>, Error> {
        self.serialize_map(None)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Members<'o>, Error> {
        Members::of_variant(self.out, variant, b'{', b"}}")
    }
}

macro_rules! lists {
    ($($trait:ident::$item:ident),*) => {
        $(impl ser::$trait for Members<'_> {
            type Ok = ();
            type Error = Error;
            fn $item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.item(value)
            }
            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        })*
    };
}

lists!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

macro_rules! structs {
    ($($trait:ident),*) => {
        $(impl ser::$trait for Members<'_> {
            type Ok = ();
            type Error = Error;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.member(name, value)
            }
            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        })*
    };
}

structs!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Members<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.next();
        let begun = self.out.len();
        append(self.out, key)?;
        match self.out.get(begun) {
            Some(b'"') => Ok(()),
            _ => Err(Error::custom("a key must be text")),
        }
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.out.push(b':');
        append(self.out, value)
    }
    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

#[cfg(test)]
mod tests;
