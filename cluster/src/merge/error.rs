//! Why images are not merged.

use image::destination::{CopyError, StoreError};
use image::document::DocumentError;
use image::files::FilesError;
use image::merge::MergeImagesError;
use image::platform::PlatformName;
use image::source::SourceError;
use registry::reference::InvalidReference;
use thiserror::Error;

use super::Conflict;
use crate::describe::DescribeError;
use crate::lock::LockFileError;
use crate::package::PackageError;
use crate::save::LayoutError;
use crate::saved::{OtherImage, SavedError};

/// Why there is no merged image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotMerged {
    /// One of the images cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The files of one cannot be read.
    #[error("{image}: {error}")]
    Files {
        /// The image.
        image: String,
        /// Why.
        error: Box<FilesError>,
    },
    /// A document of one is none.
    #[error("{image}: {error}")]
    Document {
        /// The image.
        image: String,
        /// What is wrong with it.
        error: DocumentError,
    },
    /// What one says of itself cannot be read.
    #[error("{image}: {error}")]
    Describe {
        /// The image.
        image: String,
        /// What is wrong.
        error: DescribeError,
    },
    /// The lock of one cannot be read.
    #[error(transparent)]
    Lock(#[from] LockFileError),
    /// They have no platform in common.
    #[error("{first} is for {platforms}, and the other images have none of these platforms")]
    NoPlatform {
        /// The first image.
        first: String,
        /// Its platforms.
        platforms: String,
    },
    /// A platform that was asked for is missing.
    #[error("{image} has no image for {platform}")]
    Missing {
        /// The image.
        image: String,
        /// The platform.
        platform: PlatformName,
    },
    /// Some are plain, and others nydus.
    #[error("for {platform} {plain} is a plain image and {nydus} a nydus image: convert one of them first")]
    Forms {
        /// The platform.
        platform: PlatformName,
        /// One of the plain images.
        plain: String,
        /// One of the nydus images.
        nydus: String,
    },
    /// A package cannot be read.
    #[error(transparent)]
    Package(#[from] Box<PackageError>),
    /// What was saved for one cannot be read.
    #[error("the saved images of {image}: {error}")]
    Saved {
        /// The cluster image.
        image: String,
        /// Why.
        error: Box<SavedError>,
    },
    /// What was saved for one are other images than its lock says.
    #[error("{image}: {error}")]
    OtherImage {
        /// The cluster image.
        image: String,
        /// Which of the saved images.
        error: Box<OtherImage>,
    },
    /// What was saved cannot be copied.
    #[error(transparent)]
    Copy(Box<CopyError>),
    /// Two images in `registry/` would have one name.
    #[error(transparent)]
    Names(#[from] Box<LayoutError>),
    /// There is no name for all that was saved.
    #[error("the saved images have no name: {0}")]
    Tag(InvalidReference),
    /// Two of them say different things.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// It cannot be put together.
    #[error(transparent)]
    Image(Box<MergeImagesError>),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(#[from] StoreError),
    /// A temporary directory cannot be used.
    #[error("cannot use a temporary directory: {0}")]
    Temporary(#[from] std::io::Error),
}

impl From<MergeImagesError> for NotMerged {
    fn from(error: MergeImagesError) -> Self {
        Self::Image(Box::new(error))
    }
}
