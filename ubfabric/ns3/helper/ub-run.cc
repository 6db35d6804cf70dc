// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-run.h"

#include "ns3/global-value.h"
#include "ns3/simulator.h"
#include "ns3/string.h"
#include "ns3/ub-fabric.h"
#include "ns3/ub-version.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace ns3
{

struct UbRun
{
    Ptr<UbFabric> fabric;                             //!< the fabric
    std::vector<std::pair<uint32_t, int64_t>> broken; //!< links that gave up, not yet read
    std::string leftover;                             //!< text of the last UbRunLeftover
};

const char*
UbRunPackageVersion()
{
    static const std::string version = UbVersion::GetPackageVersion();
    return version.c_str();
}

UbRun*
UbRunCreate()
{
    // no effect if a simulator is at work already: the fabric then runs step by step
    GlobalValue::Bind("SimulatorImplementationType", StringValue("ns3::UbSimulatorImpl"));
    return new UbRun{CreateObject<UbFabric>(), {}, {}};
}

void
UbRunDestroy(UbRun* run)
{
    run->fabric->Dispose();
    delete run;
    Simulator::Destroy();
}

void
UbRunSetAttribute(UbRun* run, const char* name, const char* value)
{
    run->fabric->SetAttribute(name, StringValue(value));
}

void
UbRunBuild(UbRun* run, const UbFabricArrays* arrays)
{
    run->fabric->Build(*arrays);
}

UbFabric*
UbRunGetFabric(const UbRun* run)
{
    return PeekPointer(run->fabric);
}

int64_t
UbRunAddChunk(UbRun* run,
              UbFlowRecord* flows,
              uint32_t nFlows,
              UbTaskRecord* tasks,
              uint32_t nTasks,
              uint64_t firstTask,
              const uint32_t* sendOrder,
              const uint64_t* depStart,
              const uint64_t* deps,
              const uint32_t* openOrder,
              uint32_t nOpen,
              UbFlowAccount* accounts,
              bool isLast)
{
    UbChunkArrays arrays;
    arrays.flows = flows;
    arrays.nFlows = nFlows;
    arrays.tasks = tasks;
    arrays.nTasks = nTasks;
    arrays.firstTask = firstTask;
    arrays.sendOrder = sendOrder;
    arrays.depStart = depStart;
    arrays.deps = deps;
    arrays.openOrder = openOrder;
    arrays.nOpen = nOpen;
    arrays.accounts = accounts;
    arrays.isLast = isLast;
    return run->fabric->AddChunk(arrays);
}

void
UbRunRun(UbRun* run, uint64_t packetHops)
{
    run->fabric->StopAfter(packetHops);
    Simulator::Run();
}

int64_t
UbRunTakeCompleteChunk(UbRun* run)
{
    return run->fabric->TakeCompleteChunk();
}

bool
UbRunNeedsChunk(const UbRun* run)
{
    return run->fabric->NeedsChunk();
}

bool
UbRunIsFinished(const UbRun* run)
{
    return !run->fabric->HasPaused();
}

const char*
UbRunLeftover(UbRun* run)
{
    run->leftover = run->fabric->Leftover();
    return run->leftover.c_str();
}

int64_t
UbRunGetNowPs(const UbRun*)
{
    return Simulator::Now().GetTimeStep();
}

uint64_t
UbRunGetPacketHops(const UbRun* run)
{
    return run->fabric->GetPacketHops();
}

uint64_t
UbRunGetPacketsSent(const UbRun* run)
{
    return run->fabric->GetPacketsSent();
}

uint64_t
UbRunGetFabricEvents(const UbRun* run)
{
    return run->fabric->GetFabricEvents();
}

uint64_t
UbRunGetBytesSent(const UbRun* run)
{
    return run->fabric->GetBytesSent();
}

uint64_t
UbRunGetBytesDelivered(const UbRun* run)
{
    return run->fabric->GetBytesDelivered();
}

void
UbRunReadLinkStats(const UbRun* run,
                   uint64_t* packets,
                   uint64_t* bytes,
                   int64_t* busyPs,
                   uint64_t* maxQueueBytes,
                   int64_t* noCreditPs,
                   uint64_t* retries)
{
    std::vector<UbLinkStats> stats;
    run->fabric->ReadLinkStats(stats);
    for (size_t i = 0; i < stats.size(); ++i)
    {
        packets[i] = stats[i].packets;
        bytes[i] = stats[i].bytes;
        busyPs[i] = stats[i].busyPs;
        maxQueueBytes[i] = stats[i].maxQueueBytes;
        noCreditPs[i] = stats[i].noCreditPs;
        retries[i] = stats[i].retries;
    }
}

void
UbRunScheduleLink(UbRun* run,
                  int64_t timePs,
                  uint32_t link,
                  uint64_t bytesPerS,
                  double bitErrorRate)
{
    run->fabric->ScheduleLink(timePs, link, bytesPerS, bitErrorRate);
}

void
UbRunScheduleSwitch(UbRun* run, int64_t timePs, uint32_t node, bool isDead)
{
    run->fabric->ScheduleSwitch(timePs, node, isDead);
}

void
UbRunScheduleRoutes(UbRun* run, int64_t timePs, const UbFabricArrays* arrays)
{
    run->fabric->ScheduleRoutes(timePs, *arrays);
}

void
UbRunReportBrokenLinks(UbRun* run)
{
    run->fabric->ReportBrokenLinks();
}

uint32_t
UbRunCountBroken(UbRun* run)
{
    const auto broken = run->fabric->TakeBrokenLinks();
    run->broken.insert(run->broken.end(), broken.begin(), broken.end());
    return static_cast<uint32_t>(run->broken.size());
}

void
UbRunReadBroken(UbRun* run, uint32_t* links, int64_t* timesPs)
{
    for (size_t i = 0; i < run->broken.size(); ++i)
    {
        links[i] = run->broken[i].first;
        timesPs[i] = run->broken[i].second;
    }
    run->broken.clear();
}

bool
UbRunIsStalled(const UbRun* run)
{
    return run->fabric->IsStalled();
}

uint32_t
UbRunCountStalledLinks(const UbRun* run)
{
    std::vector<uint32_t> links;
    run->fabric->ReadStalled(links);
    return static_cast<uint32_t>(links.size());
}

void
UbRunReadStalledLinks(const UbRun* run, uint32_t* links)
{
    std::vector<uint32_t> stalled;
    run->fabric->ReadStalled(stalled);
    std::copy(stalled.begin(), stalled.end(), links);
}

uint32_t
UbRunCountSamples(const UbRun* run)
{
    return static_cast<uint32_t>(run->fabric->Samples().size());
}

void
UbRunReadSamples(UbRun* run, int64_t* timesPs, uint64_t* bytes, uint64_t* waitingBytes)
{
    for (const auto& sample : run->fabric->Samples())
    {
        *timesPs++ = sample.timePs;
        bytes = std::copy(sample.bytes.begin(), sample.bytes.end(), bytes);
        waitingBytes =
            std::copy(sample.waitingBytes.begin(), sample.waitingBytes.end(), waitingBytes);
    }
    run->fabric->Samples().clear();
}

bool
UbRunHasFailed(const UbRun* run)
{
    return !run->fabric->GetError().empty();
}

void
UbRunReadFailure(const UbRun* run, int64_t* failure)
{
    const UbEndpointError& error = run->fabric->GetFailure();
    failure[0] = error.src;
    failure[1] = error.dst;
    failure[2] = error.network;
    failure[3] = error.timePs;
    failure[4] = error.hasWay ? 1 : 0;
}

uint64_t
UbRunGetPacketsLost(const UbRun* run)
{
    return run->fabric->GetPacketsLost();
}

} // namespace ns3
