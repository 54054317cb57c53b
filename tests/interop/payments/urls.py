from django.urls import include, path

from . import views

urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("payments/", views.Payments.as_view()),
    path("payments/<str:payment_id>", views.Payment.as_view()),
    path("admin/report", views.Report.as_view()),
]
