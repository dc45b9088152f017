//! Where things stand, for the question of who may do something with them; and lists of no more
//! than somebody may see.

use rackhand_controller_core::access::{Place, Scope, Sight};

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query},
    id,
};

/// From so many places on, a list asks for all of them at once instead of each by its index.
const BRANCHES: usize = 64;

/// A kind of thing that stands somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// An organisation.
    Organisation,
    /// A project.
    Project,
    /// A site.
    Site,
    /// A rack.
    Rack,
    /// An agent, by its own id or its rack's.
    Agent,
    /// A machine.
    Machine,
    /// A run, where its machine was when it began.
    Run,
    /// A certificate of erasure, where its machine was.
    Erasure,
    /// A claim.
    Claim,
    /// A pool.
    Pool,
    /// A binding, where it counts.
    Binding,
    /// A token: its project's place; a person's stands nowhere.
    Token,
}

/// A thing, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its id.
    pub id: String,
    /// Where.
    pub place: Place,
}

/// What a list's rows are tested by: expressions for where each stands; `None` where they never do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Columns {
    pub(super) organisation: Option<&'static str>,
    pub(super) project: Option<&'static str>,
    pub(super) site: Option<&'static str>,
    pub(super) rack: Option<&'static str>,
}

/// The keys of a table whose rows stand in racks.
pub(super) const OF_RACKS: &[&str] = &["project", "rack"];

/// What can be seen of a large table, as keys of its indexes.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach(Vec<Keys>);

#[derive(Clone, Debug, Default)]
struct Keys {
    projects: Vec<String>,
    racks: Vec<String>,
    sites: Vec<String>,
}

impl Keys {
    /// Those that are looked for in this column.
    fn of(&self, column: &str) -> &[String] {
        match column {
            "project" => &self.projects,
            "rack" => &self.racks,
            _ => &self.sites,
        }
    }
}

impl Thing {
    /// Asks for id, organisation, project, site and rack of what `$1` names.
    fn text(self) -> &'static str {
        match self {
            Self::Organisation => {
                "SELECT id, id AS organisation, NULL AS project, NULL AS site, NULL AS rack FROM organisations
                 WHERE id = $1 OR name = $1 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1"
            }
            Self::Project => {
                "SELECT id, organisation, id AS project, NULL AS site, NULL AS rack FROM projects WHERE id = $1"
            }
            Self::Site => {
                "SELECT id, NULL AS organisation, NULL AS project, id AS site, NULL AS rack FROM sites
                 WHERE id = $1 OR name = $1 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1"
            }
            Self::Rack => {
                "SELECT id, NULL AS organisation, NULL AS project, site, id AS rack FROM racks
                 WHERE id = $1 OR name = $1 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1"
            }
            Self::Agent => {
                "SELECT agents.id AS id, NULL AS organisation, NULL AS project, racks.site AS site, racks.id AS rack
                 FROM racks LEFT JOIN agents ON agents.rack = racks.id
                 WHERE agents.id = $1 OR racks.id = $1 OR racks.name = $1
                 ORDER BY CASE WHEN agents.id = $1 THEN 0 WHEN racks.id = $1 THEN 1 ELSE 2 END LIMIT 1"
            }
            Self::Machine => {
                "SELECT machines.id AS id, projects.organisation AS organisation, machines.project AS project,
                    racks.site AS site, machines.rack AS rack
                 FROM machines JOIN racks ON racks.id = machines.rack
                    LEFT JOIN projects ON projects.id = machines.project
                 WHERE machines.id = $1 OR machines.name = $1
                 ORDER BY CASE WHEN machines.id = $1 THEN 0 ELSE 1 END LIMIT 1"
            }
            Self::Run => {
                "SELECT runs.id AS id, projects.organisation AS organisation, runs.project AS project,
                    racks.site AS site, runs.rack AS rack
                 FROM runs JOIN racks ON racks.id = runs.rack LEFT JOIN projects ON projects.id = runs.project
                 WHERE runs.id = $1"
            }
            Self::Erasure => {
                "SELECT erasures.id AS id, projects.organisation AS organisation, erasures.project AS project,
                    racks.site AS site, erasures.rack AS rack
                 FROM erasures JOIN racks ON racks.id = erasures.rack
                    LEFT JOIN projects ON projects.id = erasures.project
                 WHERE erasures.id = $1"
            }
            Self::Claim => {
                "SELECT claims.id AS id, projects.organisation AS organisation, claims.project AS project,
                    COALESCE(racks.site, claims.site) AS site, claims.rack AS rack
                 FROM claims LEFT JOIN racks ON racks.id = claims.rack LEFT JOIN projects ON projects.id = claims.project
                 WHERE claims.id = $1"
            }
            Self::Pool => {
                "SELECT pools.id AS id, projects.organisation AS organisation, pools.project AS project,
                    COALESCE(racks.site, pools.site) AS site, pools.rack AS rack
                 FROM pools LEFT JOIN racks ON racks.id = pools.rack LEFT JOIN projects ON projects.id = pools.project
                 WHERE pools.id = $1 OR pools.name = $1
                 ORDER BY CASE WHEN pools.id = $1 THEN 0 ELSE 1 END LIMIT 1"
            }
            Self::Binding => {
                "SELECT bindings.id AS id,
                    CASE WHEN kind = 'organisation' THEN scope ELSE projects.organisation END AS organisation,
                    CASE WHEN kind = 'project' THEN scope ELSE NULL END AS project,
                    CASE WHEN kind = 'site' THEN scope ELSE racks.site END AS site,
                    CASE WHEN kind = 'rack' THEN scope ELSE NULL END AS rack
                 FROM bindings LEFT JOIN projects ON kind = 'project' AND projects.id = scope
                    LEFT JOIN racks ON kind = 'rack' AND racks.id = scope
                 WHERE bindings.id = $1"
            }
            Self::Token => {
                "SELECT tokens.id AS id, projects.organisation AS organisation, tokens.project AS project,
                    NULL AS site, NULL AS rack
                 FROM tokens LEFT JOIN projects ON projects.id = tokens.project WHERE tokens.id = $1"
            }
        }
    }

    /// Its name, for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Organisation => "organisation",
            Self::Project => "project",
            Self::Site => "site",
            Self::Rack => "rack",
            Self::Agent => "agent",
            Self::Machine => "machine",
            Self::Run => "run",
            Self::Erasure => "erasure",
            Self::Claim => "claim",
            Self::Pool => "pool",
            Self::Binding => "binding",
            Self::Token => "token",
        }
    }
}

impl Store {
    /// The thing that an id, or a name where it has one, stands for.
    pub async fn standing(&self, thing: Thing, id_or_name: &str) -> Result<Standing, StoreError> {
        standing(&self.pool, thing, id_or_name).await
    }

    /// The place of a scope itself.
    pub async fn place_of(&self, scope: Scope) -> Result<Place, StoreError> {
        place_of(&self.pool, scope).await
    }

    /// What can be seen, as keys: projects of organisations, racks of sites.
    pub(super) async fn reach(&self, sight: &Sight) -> Result<Reach, StoreError> {
        let mut reach = Vec::new();
        for set in sight.sets() {
            let mut keys = Keys::default();
            for scope in set {
                match scope {
                    Scope::Everything => {}
                    Scope::Project(id) => keys.projects.push(id.to_string()),
                    Scope::Rack(id) => keys.racks.push(id.to_string()),
                    Scope::Organisation(id) => {
                        let of = query("SELECT id FROM projects WHERE organisation = $1").bind(id.to_string());
                        for row in of.fetch_all(&self.pool).await? {
                            keys.projects.push(row.try_get("id")?);
                        }
                    }
                    Scope::Site(id) => {
                        keys.sites.push(id.to_string());
                        let of = query("SELECT id FROM racks WHERE site = $1").bind(id.to_string());
                        for row in of.fetch_all(&self.pool).await? {
                            keys.racks.push(row.try_get("id")?);
                        }
                    }
                }
            }
            keys.projects.sort_unstable();
            keys.projects.dedup();
            keys.racks.sort_unstable();
            keys.racks.dedup();
            keys.sites.sort_unstable();
            keys.sites.dedup();
            reach.push(keys);
        }
        Ok(Reach(reach))
    }
}

impl Tx {
    /// The thing that an id, or a name where it has one, stands for.
    pub async fn standing(&mut self, thing: Thing, id_or_name: &str) -> Result<Standing, StoreError> {
        standing(&mut self.inner, thing, id_or_name).await
    }

    /// The place of a scope itself.
    pub async fn place_of(&mut self, scope: Scope) -> Result<Place, StoreError> {
        place_of(&mut self.inner, scope).await
    }
}

async fn standing(executor: impl Into<Executor<'_>>, thing: Thing, name: &str) -> Result<Standing, StoreError> {
    let row = query(thing.text()).bind(name).fetch_optional(executor).await?;
    let row = row.ok_or(StoreError::NotFound(thing.word()))?;
    Ok(Standing { id: row.try_get::<Option<String>, _>("id")?.unwrap_or_default(), place: read(&row)? })
}

async fn place_of(executor: impl Into<Executor<'_>>, scope: Scope) -> Result<Place, StoreError> {
    let (thing, name) = match scope {
        Scope::Everything => return Ok(Place::EVERYTHING),
        Scope::Organisation(id) => (Thing::Organisation, id.to_string()),
        Scope::Project(id) => (Thing::Project, id.to_string()),
        Scope::Site(id) => (Thing::Site, id.to_string()),
        Scope::Rack(id) => (Thing::Rack, id.to_string()),
    };
    Ok(standing(executor, thing, &name).await?.place)
}

fn read(row: &Row) -> Result<Place, StoreError> {
    let optional = |column| row.try_get::<Option<&str>, _>(column);
    Ok(Place {
        organisation: optional("organisation")?.map(id).transpose()?,
        project: optional("project")?.map(id).transpose()?,
        site: optional("site")?.map(id).transpose()?,
        rack: optional("rack")?.map(id).transpose()?,
    })
}

impl Columns {
    /// Adds that a row can be seen, as one more condition. For tables, or parts of them, that are
    /// read through whoever asks.
    pub(super) fn push(self, query: &mut Builder, sight: &Sight) {
        for set in sight.sets() {
            query.push(" AND (1 = 0");
            for scope in set {
                let (column, id) = match scope {
                    Scope::Everything => continue,
                    Scope::Organisation(id) => (self.organisation, id.to_string()),
                    Scope::Project(id) => (self.project, id.to_string()),
                    Scope::Site(id) => (self.site, id.to_string()),
                    Scope::Rack(id) => (self.rack, id.to_string()),
                };
                if let Some(column) = column {
                    query.push(format_args!(" OR {column} = ")).push_bind(id);
                }
            }
            query.push(")");
        }
    }
}

impl Reach {
    /// Adds ` WHERE …` to a query of `table` that begins without one: rows that can be seen, of
    /// which `narrow` (which adds ` AND …`) is true, the first `limit` of them in this order. Each
    /// project, rack and site (as far as the table has these `columns`) is one seek in its index, however
    /// much others have.
    pub(super) fn push(
        &self,
        query: &mut Builder,
        table: &'static str,
        columns: &[&'static str],
        order: &str,
        limit: u32,
        narrow: impl Fn(&mut Builder),
    ) {
        let Some((keys, others)) = self.0.split_first() else {
            query.push(" WHERE 1 = 1");
            narrow(query);
            query.push(format_args!(" ORDER BY {order} LIMIT ")).push_bind(limit);
            return;
        };
        let keyed = columns.iter().map(|column| (*column, keys.of(column)));
        let branches: Vec<(&str, &[String])> = match keyed.clone().map(|(_, keys)| keys.len()).sum::<usize>() {
            0 => {
                query.push(" WHERE 1 = 0");
                return;
            }
            few if few <= BRANCHES => {
                keyed.flat_map(|(column, keys)| keys.chunks(1).map(move |key| (column, key))).collect()
            }
            _ => keyed.filter(|(_, keys)| !keys.is_empty()).collect(),
        };
        query.push(format_args!(" WHERE {table}.id IN ("));
        for (number, (column, keys)) in branches.into_iter().enumerate() {
            query.push(if number == 0 { "" } else { " UNION " });
            query.push(format_args!("SELECT id FROM (SELECT {table}.id FROM {table} WHERE "));
            within(query, table, column, keys);
            for also in others {
                query.push(" AND (1 = 0");
                for (column, keys) in columns.iter().map(|column| (*column, also.of(column))) {
                    if !keys.is_empty() {
                        query.push(" OR ");
                        within(query, table, column, keys);
                    }
                }
                query.push(")");
            }
            narrow(query);
            query.push(format_args!(" ORDER BY {order} LIMIT ")).push_bind(limit);
            query.push(format_args!(") AS seen{number}"));
        }
        query.push(format_args!(") ORDER BY {order} LIMIT ")).push_bind(limit);
    }
}

fn within(query: &mut Builder, table: &str, column: &str, keys: &[String]) {
    if let [key] = keys {
        query.push(format_args!("{table}.{column} = ")).push_bind(key);
        return;
    }
    query.push(format_args!("{table}.{column} IN ")).push_list(keys);
}
