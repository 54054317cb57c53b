from django.urls import include, path
from oauth2_provider.urls import metadata_urlpatterns

from . import views

urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    # RFC 8414 puts the metadata of an issuer without a path here; the line above has them below /o/ only.
    path("", include(metadata_urlpatterns)),
    path("payments/", views.Payments.as_view()),
    path("payments/<str:payment_id>", views.Payment.as_view()),
    path("admin/report", views.Report.as_view()),
]
