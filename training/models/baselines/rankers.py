"""Open rankers without vectors from a release. They can be evaluated but not served. Does not need torch."""

from segue.errors import BadRelease
from segue.recommend import PopularityRanker, Ranker
from segue.release import Release
from training.models.baselines.knn import VmisKnn
from training.models.baselines.markov import MarkovRanker


def open_ranker(release: Release) -> Ranker:
    """Return the ranker of a release. Raises BadRelease for an unknown model."""
    match release.manifest.model:
        case "popularity":
            return PopularityRanker(release.catalogue.plays)
        case "markov":
            return MarkovRanker.of_release(release)
        case "vmis-knn":
            return VmisKnn.of_release(release)
    raise BadRelease(f"{release.path} holds a {release.manifest.model}, which this Segue cannot evaluate: update Segue")
