//! Projects: what machines and addresses are given to.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use rackhand_common::id::{OrganisationId, ProjectId};
use rackhand_controller_core::access::{Place, Sight};

use super::{
    Organisation, Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    id, micros,
    places::Columns,
    taken, timestamp,
};

/// As many projects of one name are looked at to find the one that is meant.
const NAMESAKES: u32 = 200;

/// What machines and addresses are given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Whose it is.
    pub organisation: OrganisationId,
    /// That organisation's name.
    pub organisation_name: String,
    /// Its name; unique in its organisation.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

impl Project {
    /// Where it stands.
    pub fn place(&self) -> Place {
        Place { organisation: Some(self.organisation), project: Some(self.id), ..Place::EVERYTHING }
    }

    /// Its name with its organisation's, by which it is found wherever it is one of several.
    pub fn full_name(&self) -> String {
        format!("{}:{}", self.organisation_name, self.name)
    }
}

const SELECT: &str = "SELECT projects.*, organisations.name AS organisation_name FROM projects
    JOIN organisations ON organisations.id = projects.organisation";

impl Store {
    /// The projects that an id, a name, or `ORGANISATION:NAME` can mean.
    pub async fn projects_named(&self, text: &str) -> Result<Vec<Project>, StoreError> {
        named(&self.pool, text).await
    }

    /// The full names of these projects, as far as they are there.
    pub async fn project_names(
        &self,
        projects: impl IntoIterator<Item = ProjectId>,
    ) -> Result<HashMap<ProjectId, String>, StoreError> {
        names(&self.pool, projects).await
    }

    /// Projects that can be seen, of one organisation or all, in the order they were made, after
    /// `after`, at most `limit`.
    pub async fn projects(
        &self,
        sight: &Sight,
        organisation: Option<OrganisationId>,
        after: Option<ProjectId>,
        limit: u32,
    ) -> Result<Vec<Project>, StoreError> {
        let mut query = Builder::new(format!("{SELECT} WHERE projects.id > "));
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        if let Some(organisation) = organisation {
            query.push(" AND projects.organisation = ").push_bind(organisation.to_string());
        }
        let columns =
            Columns { organisation: Some("projects.organisation"), project: Some("projects.id"), ..Columns::default() };
        columns.push(&mut query, sight);
        query.push(" ORDER BY projects.id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// The projects that an id, a name, or `ORGANISATION:NAME` can mean.
    pub async fn projects_named(&mut self, text: &str) -> Result<Vec<Project>, StoreError> {
        named(&mut self.inner, text).await
    }

    /// Full names of these projects.
    pub async fn project_names(
        &mut self,
        projects: impl IntoIterator<Item = ProjectId>,
    ) -> Result<HashMap<ProjectId, String>, StoreError> {
        names(&mut self.inner, projects).await
    }

    /// The project with this id.
    pub async fn project(&mut self, project: ProjectId) -> Result<Project, StoreError> {
        let mut found = named(&mut self.inner, &project.to_string()).await?;
        found.retain(|found| found.id == project);
        found.pop().ok_or(StoreError::NotFound("project"))
    }

    /// Makes a project.
    pub async fn insert_project(
        &mut self,
        now: Timestamp,
        organisation: &Organisation,
        name: &str,
    ) -> Result<Project, StoreError> {
        let project = Project {
            id: ProjectId::fresh(),
            organisation: organisation.id,
            organisation_name: organisation.name.clone(),
            name: name.into(),
            created: now,
            version: 1,
        };
        self.watch("projects", project.id).await?;
        query("INSERT INTO projects (id, organisation, name, created) VALUES ($1, $2, $3, $4)")
            .bind(project.id.to_string())
            .bind(organisation.id.to_string())
            .bind(name)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("project name"))?;
        Ok(project)
    }

    /// Gives a project another name.
    pub async fn rename_project(&mut self, project: Project, name: &str) -> Result<Project, StoreError> {
        self.watch("projects", project.id).await?;
        query("UPDATE projects SET name = $2, version = version + 1 WHERE id = $1")
            .bind(project.id.to_string())
            .bind(name)
            .execute(&mut self.inner)
            .await
            .map_err(taken("project name"))?;
        Ok(Project { name: name.into(), version: project.version + 1, ..project })
    }

    /// Removes a project with its tokens and the roles that people have there; false when it has
    /// machines or addresses. What it had stays in their history.
    pub async fn delete_project(&mut self, project: ProjectId) -> Result<bool, StoreError> {
        let id = project.to_string();
        let held: i64 = query_scalar(
            "SELECT (SELECT COUNT(*) FROM machines WHERE project = $1) + (SELECT COUNT(*) FROM claims
                WHERE project = $1 AND until = 9223372036854775807)",
        )
        .bind(&id)
        .fetch_one(&mut self.inner)
        .await?;
        if held > 0 {
            return Ok(false);
        }
        self.delete_bindings_at("project", &id).await?;
        for token in self.tokens_of_project(project).await? {
            self.delete_token(token).await?;
        }
        self.watch("projects", &id).await?;
        query("DELETE FROM projects WHERE id = $1").bind(&id).execute(&mut self.inner).await?;
        Ok(true)
    }
}

async fn names(
    executor: impl Into<Executor<'_>>,
    projects: impl IntoIterator<Item = ProjectId>,
) -> Result<HashMap<ProjectId, String>, StoreError> {
    let projects: BTreeSet<_> = projects.into_iter().collect();
    if projects.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = Builder::new(format!("{SELECT} WHERE projects.id IN "));
    query.push_list(projects.iter().map(ToString::to_string));
    let rows = query.build().fetch_all(executor).await?;
    rows.iter().map(|row| read(row).map(|project| (project.id, project.full_name()))).collect()
}

async fn named(executor: impl Into<Executor<'_>>, text: &str) -> Result<Vec<Project>, StoreError> {
    let mut query = Builder::new(format!("{SELECT} WHERE "));
    match text.split_once(':') {
        Some((organisation, name)) => {
            query.push("organisations.name = ").push_bind(organisation);
            query.push(" AND projects.name = ").push_bind(name);
        }
        None => {
            query.push("projects.id = ").push_bind(text).push(" OR projects.name = ").push_bind(text);
        }
    }
    query.push(" ORDER BY projects.id LIMIT ").push_bind(NAMESAKES);
    query.build().fetch_all(executor).await?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<Project, StoreError> {
    Ok(Project {
        id: id(row.try_get("id")?)?,
        organisation: id(row.try_get("organisation")?)?,
        organisation_name: row.try_get("organisation_name")?,
        name: row.try_get("name")?,
        created: timestamp(row.try_get("created")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}
