//! Rows, and what stands in them.

use super::query::Value;

use sqlx::{Column as _, Row as _, TypeInfo as _, ValueRef as _, postgres::PgRow, sqlite::SqliteRow};

/// A row of either database.
#[derive(Debug)]
pub(in crate::store) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What stands in a column of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Stored<'r> {
    Null,
    Int(i64),
    Text(&'r str),
    Blob(&'r [u8]),
}

/// A column, by its name or its place.
pub(in crate::store) trait Index: Copy {
    /// Its place in this row.
    fn place(self, row: &Row) -> Result<usize, sqlx::Error>;
}

/// What a column can be read as.
pub(in crate::store) trait Get<'r>: Sized {
    /// It, or why not.
    fn get(stored: Stored<'r>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>>;
}

impl Row {
    /// What stands in a column.
    pub(in crate::store) fn try_get<'r, T: Get<'r>, I: Index>(&'r self, index: I) -> Result<T, sqlx::Error> {
        let place = index.place(self)?;
        let read = |stored| T::get(stored).map_err(|source| self.undecodable(place, source));
        read(self.stored(place)?)
    }

    /// The columns' names, in their order.
    pub(in crate::store) fn columns(&self) -> Vec<&str> {
        match self {
            Self::Sqlite(row) => row.columns().iter().map(|column| column.name()).collect(),
            Self::Postgres(row) => row.columns().iter().map(|column| column.name()).collect(),
        }
    }

    /// What stands in the column at this place.
    pub(in crate::store) fn stored(&self, place: usize) -> Result<Stored<'_>, sqlx::Error> {
        match self {
            Self::Sqlite(row) => {
                let value = row.try_get_raw(place)?;
                if value.is_null() {
                    return Ok(Stored::Null);
                }
                match value.type_info().name() {
                    "INTEGER" => row.try_get_unchecked(place).map(Stored::Int),
                    "TEXT" => row.try_get_unchecked(place).map(Stored::Text),
                    "BLOB" => row.try_get_unchecked(place).map(Stored::Blob),
                    other => Err(self.undecodable(place, format!("it is of type {other}").into())),
                }
            }
            Self::Postgres(row) => {
                let value = row.try_get_raw(place)?;
                if value.is_null() {
                    return Ok(Stored::Null);
                }
                match value.type_info().name() {
                    "INT8" => row.try_get_unchecked(place).map(Stored::Int),
                    "INT4" => row.try_get_unchecked::<i32, _>(place).map(|value| Stored::Int(value.into())),
                    "TEXT" | "VARCHAR" | "NAME" => row.try_get_unchecked(place).map(Stored::Text),
                    "BYTEA" => row.try_get_unchecked(place).map(Stored::Blob),
                    other => Err(self.undecodable(place, format!("it is of type {other}").into())),
                }
            }
        }
    }

    /// What stands in the column at this place, to be given to a query.
    pub(in crate::store) fn value(&self, place: usize) -> Result<Value, sqlx::Error> {
        Ok(match self.stored(place)? {
            Stored::Int(number) => Value::Int(Some(number)),
            Stored::Text(text) => Value::Text(Some(text.to_owned())),
            Stored::Blob(bytes) => Value::Blob(Some(bytes.to_vec())),
            Stored::Null => match self.kind(place) {
                "INTEGER" => Value::Int(None),
                "BLOB" => Value::Blob(None),
                _ => Value::Text(None),
            },
        })
    }

    /// The type a column has in the schema, by SQLite's name for it.
    pub(in crate::store) fn kind(&self, place: usize) -> &'static str {
        let name = match self {
            Self::Sqlite(row) => row.column(place).type_info().name(),
            Self::Postgres(row) => row.column(place).type_info().name(),
        };
        match name {
            "INT8" | "INT4" | "INTEGER" => "INTEGER",
            "BYTEA" | "BLOB" => "BLOB",
            _ => "TEXT",
        }
    }

    fn undecodable(&self, place: usize, source: Box<dyn std::error::Error + Send + Sync>) -> sqlx::Error {
        let index = self.columns().get(place).map_or_else(|| place.to_string(), ToString::to_string);
        sqlx::Error::ColumnDecode { index, source }
    }
}

impl Index for usize {
    fn place(self, _: &Row) -> Result<usize, sqlx::Error> {
        Ok(self)
    }
}

impl Index for &str {
    fn place(self, row: &Row) -> Result<usize, sqlx::Error> {
        match row {
            Row::Sqlite(row) => row.try_column(self).map(|column| column.ordinal()),
            Row::Postgres(row) => row.try_column(self).map(|column| column.ordinal()),
        }
    }
}

impl<'r, T: Get<'r>> Get<'r> for Option<T> {
    fn get(stored: Stored<'r>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        match stored {
            Stored::Null => Ok(None),
            stored => T::get(stored).map(Some),
        }
    }
}

/// Reads a kind of value by what it is stored as.
macro_rules! get {
    ($stored:ident as $life:lifetime: $($kind:ty => $value:expr;)*) => {$(
        impl<$life> Get<$life> for $kind {
            fn get(stored: Stored<$life>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
                match stored {
                    Stored::$stored(value) => ($value)(value),
                    Stored::Null => Err("it is NULL".into()),
                    other => Err(format!("{other:?} is not what is expected").into()),
                }
            }
        }
    )*};
}

get! { Int as 'r:
    i64 => Ok;
    u32 => |value: i64| Ok(u32::try_from(value)?);
    u8 => |value: i64| Ok(u8::try_from(value)?);
    bool => |value| Ok(value != 0);
}

get! { Text as 'r:
    &'r str => Ok;
    String => |value: &str| Ok(value.to_owned());
}

get! { Blob as 'r:
    &'r [u8] => Ok;
    Vec<u8> => |value: &[u8]| Ok(value.to_vec());
}
