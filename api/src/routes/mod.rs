//! One module per noun of the API.

use utoipa_axum::router::OpenApiRouter;

use crate::{AppState, openapi};

/// Every route of the document; each noun adds its line.
pub(crate) fn document_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
}
