//! Lists of tags and repositories, in pages.

use http::header::LINK;
use reqwest::Url;
use serde_json::json;

use super::error::{Code, Failure};
use super::reply::Reply;
use super::request::Head;
use super::{ServerState, blocking};

/// The longest page: bounds the answer where a client asks for everything.
const PAGE_LIMIT: usize = 10_000;

/// GET of a repository's tags.
pub(super) async fn tags(state: &ServerState, head: &Head, name: String) -> Result<Reply, Failure> {
    let storage = state.storage.clone();
    let repository = name.clone();
    let asked = AskedPage::of(head)?;
    let tags = blocking(move || {
        if !storage.layout.has_repository(&repository)? {
            return Err(Failure::new(Code::NameUnknown, repository));
        }
        Ok(storage.layout.tags(&repository)?)
    });
    let mut tags = tags.await?;
    tags.drain(..tags.partition_point(|tag| *tag <= asked.last));
    Ok(asked.page(tags, &format!("/v2/{name}/tags/list")).reply("tags", Some(&name)))
}

/// GET of all repositories.
pub(super) async fn catalog(state: &ServerState, head: &Head) -> Result<Reply, Failure> {
    let storage = state.storage.clone();
    let asked = AskedPage::of(head)?;
    let (last, n) = (asked.last.clone(), asked.n);
    // One more shows whether there is a next page.
    let names = blocking(move || Ok(storage.layout.repositories_after(&last, n + 1)?)).await?;
    Ok(asked.page(names, "/v2/_catalog").reply("repositories", None))
}

/// Up to `n` entries after `last` are asked for.
struct AskedPage {
    n: usize,
    last: String,
}

impl AskedPage {
    fn of(head: &Head) -> Result<Self, Failure> {
        let n = match head.parameter("n") {
            None => PAGE_LIMIT,
            Some(text) => {
                let n: usize = text.parse().map_err(|_| Failure::new(Code::PageSizeInvalid, text))?;
                n.min(PAGE_LIMIT)
            }
        };
        Ok(Self { n, last: head.parameter("last").unwrap_or_default().to_owned() })
    }

    /// The first of `entries`, which come after `last`.
    fn page(&self, mut entries: Vec<String>, path: &str) -> ListPage {
        let more = entries.len() > self.n;
        entries.truncate(self.n);
        let next = entries.last().filter(|_| more).map(|last| link(path, self.n, last));
        ListPage { entries, next }
    }
}

/// A part of a list.
struct ListPage {
    entries: Vec<String>,
    next: Option<String>,
}

impl ListPage {
    fn reply(self, key: &str, name: Option<&str>) -> Reply {
        let mut answer = json!({key: self.entries});
        if let (Some(name), Some(answer)) = (name, answer.as_object_mut()) {
            answer.insert("name".to_owned(), name.into());
        }
        let reply = Reply::json(&answer);
        match self.next {
            Some(next) => reply.header(LINK, &next),
            None => reply,
        }
    }
}

fn link(path: &str, n: usize, last: &str) -> String {
    let query = Url::parse_with_params("http://query/", [("n", n.to_string().as_str()), ("last", last)]);
    let query = query.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default();
    format!("<{path}?{query}>; rel=\"next\"")
}
