// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

/**
 * @file
 * @ingroup ub-fabric
 * Many endpoints send to one through a single switch.
 *
 *     endpoint 0 --+
 *     endpoint 1 --+-- switch -- receiver
 *     ...          |
 *     endpoint n --+
 *
 * The program prints when each flow finished and compares the last one with the closed form:
 * the port to the receiver sends all packets without a gap, so the makespan is the time of all
 * bytes at the link's rate plus the way of the first byte. With small buffers the sources stall
 * for lack of credit; the makespan does not change.
 */

#include "ns3/command-line.h"
#include "ns3/config.h"
#include "ns3/global-value.h"
#include "ns3/simulator.h"
#include "ns3/string.h"
#include "ns3/ub-fabric-helper.h"
#include "ns3/uinteger.h"

#include <algorithm>
#include <iostream>
#include <vector>

using namespace ns3;

namespace
{

/**
 * Say that a flow has finished.
 * @param [in] src Its source.
 * @param [in] dst Its destination.
 * @param [in] bytes Its bytes.
 * @param [in] fct Its completion time.
 */
void
FlowFinished(uint32_t src, uint32_t dst, uint64_t bytes, Time fct)
{
    std::cout << Simulator::Now().As(Time::NS) << "  endpoint " << src << " to " << dst << ": "
              << bytes << " bytes in " << fct.As(Time::NS) << "\n";
}

} // namespace

int
main(int argc, char* argv[])
{
    uint32_t nSources = 8;
    uint32_t nMessages = 16;
    uint32_t bufferBytes = 65536;
    CommandLine cmd(__FILE__);
    cmd.AddValue("sources", "Number of sending endpoints", nSources);
    cmd.AddValue("messages", "Messages that each of them sends", nMessages);
    cmd.AddValue("buffer", "Input buffer of a switch port, in bytes", bufferBytes);
    cmd.Parse(argc, argv);

    // The fabric counts picoseconds: 4 KiB at 28 GB/s take 146.286 ns. Before anything else.
    Time::SetResolution(Time::PS);
    // Optional: without it the same results come more slowly.
    GlobalValue::Bind("SimulatorImplementationType", StringValue("ns3::UbSimulatorImpl"));

    constexpr uint32_t payloadBytes = 4096;
    constexpr uint32_t headerBytes = 64;
    const DataRate rate("224Gbps"); // 28 GB/s
    const Time delay = NanoSeconds(10);
    const Time forward = NanoSeconds(200);

    UbFabricHelper helper;
    helper.SetFabricAttribute("PayloadBytes", UintegerValue(payloadBytes));
    helper.SetFabricAttribute(
        "UbTransport",
        StringValue("ns3::UbPosted[HeaderBytes=" + std::to_string(headerBytes) + "]"));
    UbEndpointParameters endpoint;
    endpoint.receiveLatency = NanoSeconds(100);
    const uint32_t hub = helper.AddSwitch(forward, bufferBytes);
    const uint32_t receiver = helper.AddEndpoint(endpoint);
    helper.Connect(hub, receiver, 0, rate, delay);
    std::vector<UbFlowRecord> flows;
    std::vector<uint32_t> openOrder;
    for (uint32_t i = 0; i < nSources; ++i)
    {
        const uint32_t source = helper.AddEndpoint(endpoint);
        helper.Connect(source, hub, 0, rate, delay);
        UbFlowRecord flow{};
        flow.src = source;
        flow.dst = receiver;
        flow.messages = nMessages;
        flow.messageBytes = payloadBytes;
        flow.sendTask = UB_NONE; // no task sends it: it starts at startPs
        flow.waitTask = UB_NONE;
        flow.startPs = 0;
        flows.push_back(flow);
        openOrder.push_back(i);
    }
    const auto fabric = helper.Build();
    fabric->TraceConnectWithoutContext("FlowFinished", MakeCallback(&FlowFinished));

    const std::vector<uint64_t> noDependencies(1, 0);
    UbChunkArrays chunk;
    chunk.flows = flows.data();
    chunk.nFlows = nSources;
    chunk.depStart = noDependencies.data();
    chunk.openOrder = openOrder.data();
    chunk.nOpen = nSources;
    fabric->AddChunk(chunk);
    Simulator::Run();

    const std::string left = fabric->Leftover();
    if (!left.empty())
    {
        std::cerr << "not everything arrived: " << left << "\n";
        return 1;
    }
    int64_t makespanPs = 0;
    for (const auto& flow : flows)
    {
        makespanPs = std::max(makespanPs, flow.finishPs);
    }
    const int64_t packetPs =
        UbSerialisePs(payloadBytes + headerBytes, static_cast<uint64_t>(rate.GetBitRate()) / 8);
    const Time closedForm = PicoSeconds(packetPs * nSources * nMessages) + 2 * delay + forward +
                            endpoint.receiveLatency;
    std::vector<UbLinkStats> stats;
    fabric->ReadLinkStats(stats);
    int64_t stalledPs = 0;
    for (const auto& link : stats)
    {
        stalledPs += link.noCreditPs;
    }
    std::cout << "makespan " << PicoSeconds(makespanPs).As(Time::NS) << ", closed form "
              << closedForm.As(Time::NS) << "\n"
              << "links waited for credit " << PicoSeconds(stalledPs).As(Time::NS)
              << " in all; most bytes that waited for the receiver's link: "
              << stats[0].maxQueueBytes << "\n";
    fabric->Dispose();
    Simulator::Destroy();
    return 0;
}
