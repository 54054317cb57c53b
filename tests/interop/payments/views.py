"""The API. Who may call it is decided as in a real project: by the scopes of the access token."""

from django.http import HttpResponse
from oauth2_provider.contrib.rest_framework import TokenHasScope
from rest_framework.response import Response
from rest_framework.views import APIView


class Payments(APIView):
    def get(self, request):
        return Response([{"id": "p-1", "amount": "10.00"}, {"id": "p-2", "amount": "0.01"}])

    def post(self, request):
        # The body goes back byte for byte, so the caller can tell whether it arrived that way.
        return HttpResponse(request.body, status=201, content_type=request.content_type)


class Payment(APIView):
    def get(self, request, payment_id):
        return Response({"id": payment_id, "amount": "10.00"})


class Report(APIView):
    permission_classes = [TokenHasScope]
    required_scopes = ["admin"]

    def get(self, request):
        return Response({"payments": 2, "total": "10.01"})
