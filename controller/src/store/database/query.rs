//! Queries and the values they are given.

use std::{fmt, marker::PhantomData};

use sqlx::{
    AssertSqlSafe, Postgres, SqlSafeStr, SqlStr, Sqlite, postgres::PgArguments, query::Query as Of,
    sqlite::SqliteArguments,
};

use super::{Done, Executor, Row, row::Get};

/// A value that a query is given, of the kind its column has, also when there is none.
#[derive(Clone, Debug)]
pub(in crate::store) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
}

/// A query with its values.
#[derive(Debug)]
pub(in crate::store) struct Query {
    text: SqlStr,
    values: Vec<Value>,
}

/// A query for the first column of its rows.
#[derive(Debug)]
pub(in crate::store) struct Scalar<T> {
    query: Query,
    kind: PhantomData<fn() -> T>,
}

/// A query that is put together from pieces.
#[derive(Debug)]
pub(in crate::store) struct Builder {
    text: String,
    values: Vec<Value>,
}

/// One row of values in a query that is put together.
#[derive(Debug)]
pub(in crate::store) struct Values<'a> {
    builder: &'a mut Builder,
    is_first: bool,
}

/// Says a query; its values follow in their order, as `$1`, `$2` and so on.
pub(in crate::store) fn query(text: impl SqlSafeStr) -> Query {
    Query { text: text.into_sql_str(), values: Vec::new() }
}

/// Says a query of which only the first column is read.
pub(in crate::store) fn query_scalar<T: for<'r> Get<'r>>(text: impl SqlSafeStr) -> Scalar<T> {
    Scalar { query: query(text), kind: PhantomData }
}

impl Query {
    /// Gives it the next value.
    pub(in crate::store) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Carries it out and reads no rows.
    pub(in crate::store) async fn execute(self, on: impl Into<Executor<'_>>) -> Result<Done, sqlx::Error> {
        match on.into() {
            Executor::SqlitePool(pool) => self.sqlite().execute(pool).await.map(|done| Done(done.rows_affected())),
            Executor::Sqlite(one) => self.sqlite().execute(one).await.map(|done| Done(done.rows_affected())),
            Executor::PgPool(pool) => self.postgres().execute(pool).await.map(|done| Done(done.rows_affected())),
            Executor::Postgres(one) => {
                let done = self.postgres().execute(one.connection()).await;
                one.told(done).map(|done| Done(done.rows_affected()))
            }
        }
    }

    /// All rows.
    pub(in crate::store) async fn fetch_all(self, on: impl Into<Executor<'_>>) -> Result<Vec<Row>, sqlx::Error> {
        Ok(match on.into() {
            Executor::SqlitePool(pool) => rows(self.sqlite().fetch_all(pool).await?, Row::Sqlite),
            Executor::Sqlite(one) => rows(self.sqlite().fetch_all(one).await?, Row::Sqlite),
            Executor::PgPool(pool) => rows(self.postgres().fetch_all(pool).await?, Row::Postgres),
            Executor::Postgres(one) => {
                let told = self.postgres().fetch_all(one.connection()).await;
                rows(one.told(told)?, Row::Postgres)
            }
        })
    }

    /// The first row, when there is one.
    pub(in crate::store) async fn fetch_optional(
        self,
        on: impl Into<Executor<'_>>,
    ) -> Result<Option<Row>, sqlx::Error> {
        Ok(match on.into() {
            Executor::SqlitePool(pool) => self.sqlite().fetch_optional(pool).await?.map(Row::Sqlite),
            Executor::Sqlite(one) => self.sqlite().fetch_optional(one).await?.map(Row::Sqlite),
            Executor::PgPool(pool) => self.postgres().fetch_optional(pool).await?.map(Row::Postgres),
            Executor::Postgres(one) => {
                let told = self.postgres().fetch_optional(one.connection()).await;
                one.told(told)?.map(Row::Postgres)
            }
        })
    }

    /// The first row, which there has to be.
    pub(in crate::store) async fn fetch_one(self, on: impl Into<Executor<'_>>) -> Result<Row, sqlx::Error> {
        self.fetch_optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    fn sqlite(self) -> Of<'static, Sqlite, SqliteArguments> {
        self.values.into_iter().fold(sqlx::query(self.text), |query, value| match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Blob(value) => query.bind(value),
        })
    }

    fn postgres(self) -> Of<'static, Postgres, PgArguments> {
        self.values.into_iter().fold(sqlx::query(self.text), |query, value| match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Blob(value) => query.bind(value),
        })
    }
}

fn rows<R>(rows: Vec<R>, of: impl Fn(R) -> Row) -> Vec<Row> {
    rows.into_iter().map(of).collect()
}

impl<T: for<'r> Get<'r>> Scalar<T> {
    /// Gives it the next value.
    pub(in crate::store) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.query = self.query.bind(value);
        self
    }

    /// What all rows have.
    pub(in crate::store) async fn fetch_all(self, on: impl Into<Executor<'_>>) -> Result<Vec<T>, sqlx::Error> {
        self.query.fetch_all(on).await?.iter().map(|row| row.try_get(0)).collect()
    }

    /// What the first row has, when there is one.
    pub(in crate::store) async fn fetch_optional(self, on: impl Into<Executor<'_>>) -> Result<Option<T>, sqlx::Error> {
        self.query.fetch_optional(on).await?.map(|row| row.try_get(0)).transpose()
    }

    /// What the first row has, which there has to be.
    pub(in crate::store) async fn fetch_one(self, on: impl Into<Executor<'_>>) -> Result<T, sqlx::Error> {
        self.query.fetch_one(on).await?.try_get(0)
    }
}

/// All of them in parts of 64, 32, … 1: few statements, and few that differ, which are prepared once.
pub(in crate::store) fn in_powers_of_two<T>(mut all: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let most = 1 << all.len().min(64).checked_ilog2()?;
        let (some, rest) = all.split_at(most);
        all = rest;
        Some(some)
    })
}

impl Builder {
    /// A query that begins so.
    pub(in crate::store) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    /// Adds a piece. It stands in the query as it is: no caller's words belong in it.
    pub(in crate::store) fn push(&mut self, text: impl fmt::Display) -> &mut Self {
        self.text.push_str(&text.to_string());
        self
    }

    /// Adds a value.
    pub(in crate::store) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        let number = self.values.len();
        self.push(format_args!("${number}"))
    }

    /// Adds a list of values in brackets, which must not be none.
    pub(in crate::store) fn push_list(&mut self, values: impl IntoIterator<Item = impl Into<Value>>) -> &mut Self {
        self.push("(");
        let mut list = Values { builder: self, is_first: true };
        for value in values {
            list.push_bind(value);
        }
        self.push(")")
    }

    /// Adds `VALUES` and a row for each of `items`, which must not be none.
    pub(in crate::store) fn push_values<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut row: impl FnMut(Values<'_>, T),
    ) -> &mut Self {
        self.push("VALUES ");
        for (number, item) in items.into_iter().enumerate() {
            self.push(if number == 0 { "(" } else { ", (" });
            row(Values { builder: self, is_first: true }, item);
            self.push(")");
        }
        self
    }

    /// The query.
    pub(in crate::store) fn build(self) -> Query {
        Query { text: AssertSqlSafe(self.text).into_sql_str(), values: self.values }
    }
}

impl Values<'_> {
    /// Adds a value to the row.
    pub(in crate::store) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        if !std::mem::take(&mut self.is_first) {
            self.builder.push(", ");
        }
        self.builder.push_bind(value);
        self
    }
}

/// What can be given to a query, and is there or not.
macro_rules! values {
    ($($kind:ty => $stored:ident, $value:expr;)*) => {$(
        impl From<$kind> for Value {
            fn from(value: $kind) -> Self {
                Self::$stored(Some(($value)(value)))
            }
        }

        impl From<Option<$kind>> for Value {
            fn from(value: Option<$kind>) -> Self {
                Self::$stored(value.map($value))
            }
        }
    )*};
}

values! {
    i64 => Int, |value| value;
    i32 => Int, i64::from;
    u32 => Int, i64::from;
    u8 => Int, i64::from;
    bool => Int, i64::from;
    String => Text, |value| value;
    &str => Text, str::to_owned;
    &String => Text, |value: &String| value.clone();
    Vec<u8> => Blob, |value| value;
    &Vec<u8> => Blob, |value: &Vec<u8>| value.clone();
}

impl From<&Option<String>> for Value {
    fn from(value: &Option<String>) -> Self {
        Self::Text(value.clone())
    }
}
