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
    let tags = blocking(move || {
        if !storage.layout.has_repository(&repository)? {
            return Err(Failure::new(Code::NameUnknown, repository));
        }
        Ok(storage.layout.tags(&repository)?)
    });
    let page = ListPage::of(head, tags.await?, &format!("/v2/{name}/tags/list"))?;
    Ok(page.reply("tags", Some(&name)))
}

/// GET of all repositories.
pub(super) async fn catalog(state: &ServerState, head: &Head) -> Result<Reply, Failure> {
    let storage = state.storage.clone();
    let names = blocking(move || Ok(storage.layout.repositories()?)).await?;
    Ok(ListPage::of(head, names, "/v2/_catalog")?.reply("repositories", None))
}

/// Up to `n` entries after `last`.
struct ListPage {
    entries: Vec<String>,
    next: Option<String>,
}

impl ListPage {
    fn of(head: &Head, sorted: Vec<String>, path: &str) -> Result<Self, Failure> {
        let n = match head.parameter("n") {
            None => PAGE_LIMIT,
            Some(text) => {
                let n: usize = text.parse().map_err(|_| Failure::new(Code::PageSizeInvalid, text))?;
                n.min(PAGE_LIMIT)
            }
        };
        let last = head.parameter("last").unwrap_or_default();
        let start = if last.is_empty() { 0 } else { sorted.partition_point(|entry| entry.as_str() <= last) };
        let more = sorted.len() - start > n;
        let entries: Vec<String> = sorted.into_iter().skip(start).take(n).collect();
        let next = match entries.last() {
            Some(last) if more => Some(link(path, n, last)),
            _ => None,
        };
        Ok(Self { entries, next })
    }

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
