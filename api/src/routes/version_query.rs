//! Which version of a model is called.

use comptoir_domain::id::{ModelId, ModelVersionId};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::{Problem, calls::Target};

#[derive(Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VersionQuery {
    /// The version; left out: the newest that is recommended.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>, nullable = false)]
    version: Option<ModelVersionId>,
}

impl VersionQuery {
    /// Of a model that the path names.
    pub(super) const fn of(self, model: ModelId) -> Target {
        let version = self.version;
        Target { model, version }
    }

    /// Of a model that the body names; what is no name of a model names none.
    pub(super) fn of_named(self, model: &str) -> Result<Target, Problem> {
        let model = model.parse().map_err(|_| Problem::not_found())?;
        Ok(self.of(model))
    }
}
